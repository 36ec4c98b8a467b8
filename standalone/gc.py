"""`pseudoword gc`: garbage collection of a store."""

import asyncio
import json
import tempfile
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import click

from registry.catalogue.commands import Quotas
from registry.catalogue.state_machine import CatalogueStateMachine
from registry.garbage import GRACE, Collector
from standalone.stores import HELP, opened, state_machines
from storage.errors import ObjectMissing
from storage.garbage import Collection, sweep
from storage.ledger.ledger import Ledger
from storage.ledger.log import Metadata
from storage.objects.base import ObjectStore


@click.command(name="gc", epilog=HELP)
@click.argument("store")
@click.option("--dry-run", is_flag=True, help="Print what would be deleted, and change nothing.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=GRACE.total_seconds() / 3600,
    show_default=True,
    metavar="HOURS",
    help="Age at which an unneeded upload is condemned, and time from then until it is deleted.",
)
@click.option(
    "--stopped",
    is_flag=True,
    help="Also delete uploads that no entry names; requires that all servers of this store are stopped. Not needed for "
    "a registry's store.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to standard output.")
def collect(store: str, dry_run: bool, grace: float, stopped: bool, as_json: bool) -> None:
    """Condemn and delete blobs that a store does not need.

    In a registry's store, condemned blobs are deleted by a run at least one grace period later, so run it every day.
    Trainer and generation delete their unneeded blobs themselves; in their stores, this deletes the ones that they
    missed. Servers may keep running, and several runs at once are safe. Also removes objects of interrupted probes and
    superseded snapshots.
    """
    with opened(store, existing=True, fit=not dry_run) as objects:
        done = _collected(objects, timedelta(hours=grace), stopped=stopped, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(asdict(done) | {"dry_run": dry_run}, indent=1))
        return
    for verb, names in (("condemn", done.condemned), ("delete", done.deleted)):
        for name in names:
            click.echo(f"{'would ' if dry_run else ''}{verb} {name}")
    click.echo(
        f"{done.seen} blobs: {done.in_use} in use, {done.waiting} within their grace period, {len(done.condemned)} "
        f"condemned; {len(done.deleted)} objects of {done.bytes} bytes deleted" + (" (dry run)" if dry_run else "")
    )


def _collected(store: ObjectStore, grace: timedelta, *, stopped: bool, dry_run: bool) -> Collection:
    try:
        metadata = Metadata.read(store)
    except ObjectMissing:
        raise click.ClickException(f"there is no store at {store.description}") from None
    if metadata.book == CatalogueStateMachine.name:
        return asyncio.run(_collect(store, grace, dry_run))
    state_machine = state_machines().get(metadata.book)
    if state_machine is None:
        raise click.ClickException(f"this version has no state machine called {metadata.book!r}")
    with tempfile.TemporaryDirectory(prefix="pseudoword-gc-") as folder:
        return sweep(store, state_machine, Path(folder), grace=grace, stopped=stopped, dry_run=dry_run)


async def _collect(store: ObjectStore, grace: timedelta, dry_run: bool) -> Collection:
    shards = Metadata.read(store).shards
    with tempfile.TemporaryDirectory(prefix="pseudoword-gc-") as folder:
        state_machine = CatalogueStateMachine(Quotas())
        ledger = Ledger.open(store, state_machine, shards=shards, view_folder=Path(folder), maintenance=not dry_run)
        try:
            return await Collector(ledger, store, grace=grace, dry_run=dry_run).run()
        finally:
            await ledger.close()
