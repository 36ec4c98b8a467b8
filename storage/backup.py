"""Backup of a store at one revision of each shard, while writes go on; restore of a backup into a new store.

A backup is an object store that holds `segments/<shard>/<first entry>` (the last segment may be short), the needed
blobs under their own names, and `backup.json`, which is written last and names the last entry of each shard. A backup
can be repeated into the same place: objects that are already present are not copied, and the older backup stays valid
until the new one is complete.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.errors import Damaged, ObjectMissing, StoreMismatch
from storage.ledger.entry import Entry, encode, entry_name
from storage.ledger.log import IDENTITY_FRESH_S, METADATA_NAME, RESTORING, Backoff, Log, Metadata, new_metadata
from storage.ledger.segments import RUN, pack, read_segment, segment_name, segments, unpack
from storage.ledger.snapshots import whole_view, write_snapshot
from storage.ledger.state_machine import StateMachine
from storage.ledger.view import View
from storage.objects.base import ObjectStore, list_all
from storage.objects.blobs import Blobs

MANIFEST = "backup.json"
_FORMAT = 1
_THREADS = 16
_WINDOW = 64
StateMachines = Mapping[str, StateMachine[Any]]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of a backup: the source store, the time by this machine's clock, the last entry of each shard, the
    number of blobs and their total size in bytes."""

    store_id: str
    book: str
    shards: int
    created: str
    entries: Sequence[int]
    blobs: int
    blob_bytes: int

    @classmethod
    def read(cls, backup: ObjectStore) -> "Manifest":
        """Raises ObjectMissing, Damaged."""
        try:
            body = json.loads(backup.get(MANIFEST))
            digest = body.pop("sha256")
            form = body.pop("format")
            found = cls(**body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(MANIFEST, f"it is not a backup's manifest ({type(error).__name__})") from error
        if form != _FORMAT or digest != found._digest():
            raise Damaged(MANIFEST, "its digest does not match, or this version does not support its format")
        return found

    def encode(self) -> bytes:
        """The content of backup.json."""
        return json.dumps({"format": _FORMAT, **asdict(self), "sha256": self._digest()}, indent=1).encode()

    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def back_up(
    store: ObjectStore, backup: ObjectStore, state_machines: Mapping[str, StateMachine[Any]], folder: Path
) -> Manifest:
    """Copy `store` into `backup`, which is empty or an older backup of the same store; views are built in `folder`.

    Blocks, for minutes on a large store. Raises StoreMismatch when `backup` holds something else, Damaged and
    ObjectMissing for an object that cannot be copied, and StoreUnavailable.
    """
    metadata = Metadata.read(store)
    _refuse_foreign(backup, metadata.store_id)
    log = Log(store, metadata.store_id, metadata.shards, Backoff())
    present = {info.name for info in list_all(backup, "t/")}
    last: list[int] = []
    live: set[str] = set()
    for shard in range(metadata.shards):
        with whole_view(
            log, shard, _state_machine(state_machines, metadata.book), folder / f"shard-{shard}.sqlite"
        ) as view:
            last.append(view.position.entry)
            with view.snapshot() as (db, _):
                live.update(view.state_machine.blobs(db))
        _copy_entries(log, backup, shard, last[-1])
    # Blobs are copied after the entries that name them. They still exist: no blob is deleted within a day.
    size = copy_blobs(store, backup, live, present)
    manifest = Manifest(
        store_id=metadata.store_id,
        book=metadata.book,
        shards=metadata.shards,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        entries=last,
        blobs=len(live),
        blob_bytes=size,
    )
    backup.put(MANIFEST, manifest.encode())
    return manifest


def restore(
    backup: ObjectStore, store: ObjectStore, state_machines: Mapping[str, StateMachine[Any]], folder: Path
) -> Metadata:
    """Make a new store, with an id of its own, from `backup`. `store` must be empty; servers refuse it until the
    restore has finished.

    Blocks, for minutes on a large store. Raises StoreMismatch when `store` is not empty, Damaged and ObjectMissing for
    an incomplete backup, and StoreUnavailable. A failed restore leaves an unusable store: empty it and start again.
    """
    manifest = Manifest.read(backup)
    state_machine = _state_machine(state_machines, manifest.book)
    metadata = claim(store, manifest.book, manifest.shards)
    for shard, last in enumerate(manifest.entries):
        view = View(
            folder / f"shard-{shard}.sqlite", store_id=metadata.store_id, shard=shard, state_machine=state_machine
        )
        with closing(view):
            for entries in _runs(backup, manifest, shard, last):
                renamed = [replace(entry, store_id=metadata.store_id) for entry in entries]
                for entry in renamed:
                    view.replay(entry)
                put_entries(store, renamed)
            with view.snapshot() as (db, _):
                live = set(state_machine.blobs(db))
            copy_blobs(backup, store, live, set())
            if last:
                write_snapshot(store, view)
    store.put(METADATA_NAME, metadata.encode())
    return metadata


def claim(store: ObjectStore, state_machine: str, shards: int) -> Metadata:
    """Reserve the empty `store` for a restore. Servers refuse it until its metadata is written again without RESTORING.

    Raises StoreMismatch when it is not empty, also when a server of the store that was here before still writes.
    """
    _refuse_occupied(store, set())
    metadata = new_metadata(state_machine, shards)
    store.put_if_absent(METADATA_NAME, metadata.encode(RESTORING))
    # A server that still runs on the store that was here before detects the new id within this pause and stops writing,
    # before the restore writes any entry that it could mix with its own.
    time.sleep(2 * IDENTITY_FRESH_S)
    _refuse_occupied(store, {METADATA_NAME})
    return metadata


def _refuse_occupied(store: ObjectStore, allowed: set[str]) -> None:
    for info in store.list("", limit=len(allowed) + 1):
        if info.name not in allowed:
            raise StoreMismatch(
                f"{store.description} is not empty: it holds {info.name!r}; empty it and repeat the command"
            )


def _state_machine(state_machines: StateMachines, name: str) -> StateMachine[Any]:
    if name not in state_machines:
        raise Damaged(METADATA_NAME, f"this version has no state machine called {name!r}")
    return state_machines[name]


def _refuse_foreign(backup: ObjectStore, store_id: str) -> None:
    try:
        found = Manifest.read(backup)
    except ObjectMissing:
        occupied = backup.list("", limit=1)
        # An interrupted backup has segments or blobs, and no manifest yet.
        if occupied and occupied[0].name.split("/")[0] not in ("segments", "t"):
            raise StoreMismatch(
                f"{backup.description} is neither empty nor a backup; give an empty place or an older backup"
            ) from None
        return
    if found.store_id != store_id:
        raise StoreMismatch(
            f"{backup.description} is the backup of another store, {found.store_id}; give each store its own place"
        )


def _copy_entries(log: Log, backup: ObjectStore, shard: int, last: int) -> None:
    copied, available = segments(backup, shard), segments(log.store, shard)
    for first in range(1, last + 1, RUN):
        end = min(last, first + RUN - 1)
        name = segment_name(shard, first)
        if first in copied:
            # Copied by an earlier backup. Only its last segment may have been short.
            earlier = unpack(name, backup.get(name), store_id=log.store_id, shard=shard)
            if earlier[-1].number >= end:
                continue
        entries = _run(log, shard, first, end, in_segment=first in available)
        backup.put(name, pack(log.store_id, shard, entries))


def _run(log: Log, shard: int, first: int, end: int, *, in_segment: bool) -> list[Entry]:
    if in_segment:
        try:
            return read_segment(log, shard, first)
        except (Damaged, ObjectMissing):
            pass  # the segment is only a copy: read the entries themselves
    with ThreadPoolExecutor(_THREADS) as threads:
        entries = list(threads.map(lambda number: log.read(shard, number), range(first, end + 1)))
    found = [entry for entry in entries if entry is not None]
    if len(found) != len(entries):
        raise ObjectMissing(entry_name(shard, first + entries.index(None)))
    return found


def _runs(backup: ObjectStore, manifest: Manifest, shard: int, last: int) -> Iterator[list[Entry]]:
    """The entries of a shard up to `last`, a run at a time."""
    for first in range(1, last + 1, RUN):
        name = segment_name(shard, first)
        entries = unpack(name, backup.get(name), store_id=manifest.store_id, shard=shard)
        entries = [entry for entry in entries if entry.number <= last]
        if entries[0].number != first or entries[-1].number != min(last, first + RUN - 1):
            raise Damaged(name, f"it does not hold the entries from {first} that the manifest promises")
        yield entries


def put_entries(store: ObjectStore, entries: Sequence[Entry]) -> None:
    """Write a run of entries into a store that is not in use yet. A full run also gets its segment."""
    first = entries[0]
    _each(entries, lambda entry: store.put(entry_name(entry.shard, entry.number), encode(entry)))
    if len(entries) == RUN:
        store.put(segment_name(first.shard, first.number), pack(first.store_id, first.shard, entries))


def copy_blobs(source: ObjectStore, target: ObjectStore, names: set[str], present: set[str]) -> int:
    """Copy the blobs `names` except those in `present`, each checked against the digest in its name. Returns the total
    size of all `names` in bytes."""
    blobs = Blobs(source)
    sizes: list[int] = []

    def copy(name: str) -> None:
        if name in present:
            sizes.append(target.stat(name).size)
            return
        data = blobs.get(name)
        target.put(name, data)
        sizes.append(len(data))

    _each(sorted(names), copy)
    return sum(sizes)


def _each(items: Sequence[Any], work: Callable[[Any], None]) -> None:
    """Run `work` for all items in several threads, window by window, so that an error stops the rest early."""
    with ThreadPoolExecutor(_THREADS) as threads:
        for start in range(0, len(items), _WINDOW):
            _drain(threads.map(work, items[start : start + _WINDOW]))


def _drain(results: Iterable[None]) -> None:
    for _ in results:
        pass
