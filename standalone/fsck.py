"""`pseudoword fsck`: is a store whole?"""

import json
import sqlite3
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import click

from registry.catalogue.versioned_rows import FOREVER
from standalone.stores import HELP, opened, state_machines
from storage.inspect.report import Report, Severity, Vectors
from storage.inspect.store import Inspection

_SHOWN = 20  # findings of garbage and notes that are listed without --all


@click.command(epilog=HELP)
@click.argument("store")
@click.option(
    "--views",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    help="Folder of a server's views to compare too; those in a store's own folder are found.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--all", "everything", is_flag=True, help="List all garbage, not only the first of it.")
def fsck(store: str, views: tuple[Path, ...], as_json: bool, everything: bool) -> None:
    """Read a whole store and say what is damaged, missing or left over.

    Replays the log from its beginning and compares with it all that is derived from it: segments, checkpoints, and
    servers' views. Changes nothing; servers may go on meanwhile.

    Exit status: 0 nothing is wrong (garbage is not wrong), 1 something is, 2 the store could not be read.
    """
    try:
        report = inspect(store, views)
    except click.ClickException as error:
        error.show()
        raise SystemExit(2) from None
    if as_json:
        findings = [asdict(found) for found in report.findings]
        click.echo(json.dumps(asdict(report) | {"findings": findings, "sound": report.sound}, indent=1))
    else:
        _show(report, everything)
    raise SystemExit(0 if report.sound else 1)


def inspect(address: str, views: tuple[Path, ...] = ()) -> Report:
    """What an inspection of the store at `address` finds. Raises click.ClickException when it cannot be read."""
    with opened(address, existing=True) as store, tempfile.TemporaryDirectory(prefix="pseudoword-fsck-") as folder:
        return Inspection(store, state_machines(), Path(folder), vectors=_vectors, views=views).run()


def _vectors(db: sqlite3.Connection) -> Mapping[str, Vectors]:
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'versions'").fetchone():
        return {}
    rows = db.execute(f"SELECT blob, size, tensors_digest FROM versions WHERE gone = {FOREVER}")
    return {row["blob"]: Vectors(size=row["size"], tensors_digest=row["tensors_digest"]) for row in rows}


def _show(report: Report, everything: bool) -> None:
    click.echo(f"{report.store}: {report.book}, store {report.store_id}, made {report.created}")
    click.echo(", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in report.counts.items()) or "empty")
    for severity in Severity:
        found = [finding for finding in report.findings if finding.severity is severity]
        for_sure = severity in (Severity.DAMAGE, Severity.DERIVED) or everything
        for finding in found if for_sure else found[:_SHOWN]:
            click.echo(f"{severity}: {finding.object}: {finding.why}")
        if len(found) > _SHOWN and not for_sure:
            click.echo(f"{severity}: {len(found) - _SHOWN} more; --all lists them")
    click.echo("sound" if report.sound else "NOT SOUND")
