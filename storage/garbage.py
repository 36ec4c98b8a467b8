"""What nobody needs in a store whose book knows no condemnation: its servers delete what they no longer need, and this
finds what they have left.

A blob that an entry has named and that the book needs no more is never named again, so it can go at any time. A blob
that no entry names may belong to a server that sleeps between its upload and its commit, and there is nothing in the
log that would refuse that commit; so it goes only where the servers are known to be stopped.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from storage.errors import ObjectMissing
from storage.inspect.shard import blob_names
from storage.ledger.log import Backoff, Log, Metadata
from storage.ledger.snapshots import snapshots, superseded, whole_view
from storage.ledger.state_machine import StateMachine
from storage.ledger.view import all_changes
from storage.objects.base import ObjectInfo, ObjectStore, list_all


@dataclass(kw_only=True)
class Collection:
    """What a run has found and done, or would have done. Names of objects; `bytes` are those of the deleted."""

    seen: int = 0
    in_use: int = 0
    waiting: int = 0
    condemned: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    bytes: int = 0


def is_over(since: datetime, now: datetime, grace: timedelta) -> bool:
    """Whether a grace that began at `since` has ended, by the store's clock."""
    # That is cut off to the second: without any grace it would be behind what it has just stamped.
    return not grace or now - since >= grace


def leftovers(store: ObjectStore, shards: int) -> Iterator[ObjectInfo]:
    """What probes have left, and checkpoints that newer ones replace."""
    yield from store.list("probe/")
    for shard in range(shards):
        for snapshot in superseded(snapshots(store, shard)):
            with suppress(ObjectMissing):  # a server was faster
                yield store.stat(snapshot.name)


def sweep(
    store: ObjectStore,
    state_machine: StateMachine[Any],
    folder: Path,
    *,
    grace: timedelta,
    stopped: bool,
    dry_run: bool,
) -> Collection:
    """Delete what was put a `grace` ago and is not needed; `stopped`: also blobs that no entry names. `folder` is for
    views. Blocks. Raises ObjectMissing, Damaged, StoreMismatch, StoreUnavailable; what was done until then is done.
    """
    metadata = Metadata.read(store)
    log = Log(store, metadata.store_id, metadata.shards, Backoff())
    # Listed before the log is read: what is put later is none of this run's business.
    listed = list(list_all(store, "t/"))
    named: set[str] = set()
    needed: set[str] = set()
    for shard in range(metadata.shards):
        with (
            whole_view(log, shard, state_machine, folder / f"shard-{shard}.sqlite") as view,
            view.snapshot() as (db, _),
        ):
            needed.update(state_machine.blobs(db))
            for event in all_changes(db, metadata.store_id, shard):
                named.update(blob_names(event.body))
    now, done = store.now(), Collection()

    def delete(info: ObjectInfo) -> None:
        if not dry_run:
            store.delete(info.name)
        done.deleted.append(info.name)
        done.bytes += info.size

    for info in listed:
        done.seen += 1
        if info.name in needed:
            done.in_use += 1
        elif (stopped or info.name in named) and is_over(info.modified, now, grace):
            delete(info)
        else:
            done.waiting += 1
    for info in leftovers(store, metadata.shards):
        if is_over(info.modified, now, grace):
            delete(info)
    return done
