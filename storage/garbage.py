"""Garbage collection for a store whose state machine does not condemn blobs: its servers delete the blobs that they no
longer need, and this sweep finds the ones that they missed.

A blob that an entry has named and that the state machine no longer needs is never named again, so it can be deleted at
any time. A blob that no entry names may belong to a server that is suspended between its upload and its commit, and
nothing in the log would refuse that commit. Such a blob is deleted only when all servers are known to be stopped.
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
    """Result of a run, or of a dry run: object names and counts. `bytes` is the size of the deleted objects."""

    seen: int = 0
    in_use: int = 0
    waiting: int = 0
    condemned: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    bytes: int = 0


def is_over(since: datetime, now: datetime, grace: timedelta) -> bool:
    """Whether a grace period that began at `since` has ended, by the store's clock."""
    # The store's clock is truncated to the second, so `now` may be before the time stamp of an object written just now:
    # a grace period of zero is over without a comparison.
    return not grace or now - since >= grace


def leftovers(store: ObjectStore, shards: int) -> Iterator[ObjectInfo]:
    """Objects left by interrupted probes, and snapshots that newer ones supersede."""
    yield from store.list("probe/")
    for shard in range(shards):
        for snapshot in superseded(snapshots(store, shard)):
            with suppress(ObjectMissing):  # a server has deleted it in the meantime
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
    """Delete unneeded objects that are older than `grace`. With `stopped` (all servers are stopped), also blobs that no
    entry names. Views are built in `folder`.

    Blocks. Raises ObjectMissing, Damaged, StoreMismatch, StoreUnavailable; deletions made before the error remain.
    """
    metadata = Metadata.read(store)
    log = Log(store, metadata.store_id, metadata.shards, Backoff())
    # Listed before the log is read: blobs that are uploaded later are not part of this run.
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
