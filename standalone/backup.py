"""`pseudoword backup` and `pseudoword restore`."""

import tempfile
from pathlib import Path

import click

from standalone.stores import HELP, opened, state_machines
from storage.backup import back_up
from storage.backup import restore as restored


@click.command(epilog=HELP)
@click.argument("store")
@click.argument("folder", metavar="DIR")
def backup(store: str, folder: str) -> None:
    """Copy STORE into DIR at one revision, while servers keep running.

    DIR must be empty, or hold an older backup of the same store: then only new objects are copied. Every object is
    verified as it is read. DIR may also be an s3:// address.
    """
    with (
        opened(store, existing=True) as source,
        opened(folder, existing=False) as target,
        tempfile.TemporaryDirectory(prefix="pseudoword-backup-") as views,
    ):
        manifest = back_up(source, target, state_machines(), Path(views))
    click.echo(
        f"{manifest.book} store {manifest.store_id}: {sum(manifest.entries)} entries, {manifest.blobs} blobs of "
        f"{manifest.blob_bytes} bytes in {folder}"
    )


@click.command(epilog=HELP)
@click.argument("folder", metavar="DIR")
@click.argument("store")
def restore(folder: str, store: str) -> None:
    """Make a new store at STORE, which must be empty, from the backup in DIR.

    The new store has an id of its own: revisions, page tokens and resume tokens of the old store are refused with
    STORE_CHANGED, and servers rebuild their views. Servers refuse STORE until the restore is complete.
    """
    with (
        opened(folder, existing=True) as source,
        opened(store, existing=False) as target,
        tempfile.TemporaryDirectory(prefix="pseudoword-restore-") as views,
    ):
        metadata = restored(source, target, state_machines(), Path(views))
    click.echo(f"restored into {store}: store {metadata.store_id}")
