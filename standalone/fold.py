"""`pseudoword fold`: copies a registry's store without its superseded history."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import click

from registry.catalogue.commands import Quotas
from registry.catalogue.folding import Kept, fold
from registry.catalogue.state_machine import CatalogueStateMachine
from standalone.stores import HELP, opened
from storage.backup import claim, copy_blobs, put_entries
from storage.errors import ObjectMissing, StoreMismatch
from storage.ledger.entry import Entry
from storage.ledger.log import METADATA_NAME, Backoff, Log, Metadata, new_write_id
from storage.ledger.segments import RUN
from storage.ledger.snapshots import whole_view, write_snapshot
from storage.ledger.view import View
from storage.objects.base import ObjectStore

_DAY_US = 86_400_000_000


@dataclass(kw_only=True)
class Folded:
    """Numbers of entries and events in the old store, and of those kept in the new one."""

    store_id: str
    entries: int = 0
    events: int = 0
    kept_entries: int = 0
    kept_events: int = 0
    blobs: int = 0


@click.command(name="fold", epilog=HELP)
@click.argument("store")
@click.argument("new")
@click.option(
    "--keep",
    type=click.FloatRange(min=0),
    default=7.0,
    show_default=True,
    metavar="DAYS",
    help="All events of the last DAYS are kept, so that their request ids are still recognised.",
)
@click.option(
    "--moves",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Number of each alias's moves to keep, for rollback and history.",
)
def folded(store: str, new: str, keep: float, moves: int) -> None:
    """Copy a registry's STORE to a new store at NEW, which must be empty, without its superseded history.

    Stop the registries first: writes during the copy are lost. NEW has an id of its own: etags, revisions, page tokens
    and resume tokens of the old store are invalid there, and servers rebuild their views. Versions, aliases,
    evaluations, times and numbers stay as they are. STORE is not changed.
    """
    with (
        opened(store, existing=True) as source,
        opened(new, existing=False) as target,
        tempfile.TemporaryDirectory(prefix="pseudoword-fold-") as folder,
    ):
        before_us = time.time_ns() // 1000 - round(keep * _DAY_US)
        done = _fold(source, target, Path(folder), before_us, moves)
    click.echo(
        f"folded into {new}: store {done.store_id}, {done.kept_events} of {done.events} events in "
        f"{done.kept_entries} of {done.entries} entries, {done.blobs} blobs"
    )


def _fold(source: ObjectStore, target: ObjectStore, folder: Path, before_us: int, moves: int) -> Folded:
    try:
        old = Metadata.read(source)
    except ObjectMissing:
        raise click.ClickException(f"there is no store at {source.description}") from None
    state_machine = CatalogueStateMachine(Quotas())
    if old.book != state_machine.name:
        raise StoreMismatch(f"{source.description} is the store of the {old.book}; only a registry's can be folded")
    new = claim(target, old.book, old.shards)
    log = Log(source, old.store_id, old.shards, Backoff())
    done = Folded(store_id=new.store_id)
    for shard in range(old.shards):
        now = View(folder / f"new-{shard}.sqlite", store_id=new.store_id, shard=shard, state_machine=state_machine)
        with closing(now), whole_view(log, shard, state_machine, folder / f"old-{shard}.sqlite") as was:
            done.entries += was.position.entry
            with was.snapshot() as (db, _):
                done.events += db.execute("SELECT count(*) FROM ledger_history").fetchone()[0]
                kept = fold(db, old.store_id, shard, before_us=before_us, moves=moves)
                for run in _runs(new.store_id, shard, kept):
                    put_entries(target, run)
                    for entry in run:
                        now.replay(entry)
                        done.kept_events += len(entry.events)
            done.kept_entries += now.position.entry
            with now.snapshot() as (db, _):
                live = set(state_machine.blobs(db))
            done.blobs += len(live)
            copy_blobs(source, target, live, set())
            if now.position.entry:
                write_snapshot(target, now)
    target.put(METADATA_NAME, new.encode())
    return done


def _runs(store_id: str, shard: int, kept: Iterator[Kept]) -> Iterator[Sequence[Entry]]:
    entries = (
        Entry(
            store_id=store_id,
            shard=shard,
            number=number,
            time_us=entry.time_us,
            write_id=new_write_id(),
            events=tuple(entry.events),
        )
        for number, entry in enumerate(kept, start=1)
    )
    while run := list(islice(entries, RUN)):
        yield run
