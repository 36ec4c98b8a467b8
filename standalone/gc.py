"""`pseudoword gc`: remove what no version needs."""

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
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=GRACE.total_seconds() / 3600,
    show_default=True,
    metavar="HOURS",
    help="How old an upload must be to be condemned, and how long it stays after that.",
)
@click.option(
    "--stopped",
    is_flag=True,
    help="The servers of this store are stopped (not needed for a registry's): delete uploads that no entry names too.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def collect(store: str, dry_run: bool, grace: float, stopped: bool, as_json: bool) -> None:
    """Condemn and delete blobs that nothing in a store needs.

    In a registry's store, what is condemned is deleted by a run that comes a grace later, so run it every day. A
    trainer or a generation deletes what it no longer needs by itself; there, this deletes what was left behind.
    Servers may go on meanwhile, and several runs do no harm. Also removes what probes have left and checkpoints that
    newer ones replace.
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
        f"{done.seen} blobs: {done.in_use} in use, {done.waiting} within their grace, {len(done.condemned)} condemned; "
        f"{len(done.deleted)} objects of {done.bytes} bytes deleted" + (" (dry run)" if dry_run else "")
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
        raise click.ClickException(f"nothing here knows a state machine called {metadata.book!r}")
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
