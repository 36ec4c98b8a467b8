"""A store copied as it was at one revision of each shard, while writes go on; and a new store made from such a copy.

A backup is a store's folder of its own kind: `segments/<shard>/<first entry>` (the last one may be short), the blobs
that were needed under their own names, and `backup.json`, written last, which says up to which entry it goes. It can be
made again into the same place: what is there already is not copied, and the older one stays good until the new one is
whole.
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
    """What a backup holds: of which store, when by this machine's clock, up to which entry of each shard, and how many
    blobs of how many bytes."""

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
            raise Damaged(MANIFEST, f"it describes no backup ({type(error).__name__})") from error
        if form != _FORMAT or digest != found._digest():
            raise Damaged(MANIFEST, "its digest does not match, or it has a format that this version does not know")
        return found

    def encode(self) -> bytes:
        """The object."""
        return json.dumps({"format": _FORMAT, **asdict(self), "sha256": self._digest()}, indent=1).encode()

    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def back_up(
    store: ObjectStore, backup: ObjectStore, state_machines: Mapping[str, StateMachine[Any]], folder: Path
) -> Manifest:
    """Copy `store` into `backup`, which is empty or an older backup of the same store; `folder` is for views.

    Blocks, for long. Raises StoreMismatch when `backup` holds something else, Damaged and ObjectMissing for what cannot
    be copied, and StoreUnavailable.
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
    # Content is copied after the entries that name it, and is still there: nothing is deleted within a day.
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
    """Make a new store, with an id of its own, from `backup`; `store` must be empty, and is refused by servers until
    this has ended.

    Blocks, for long. Raises StoreMismatch when it is not empty, Damaged and ObjectMissing for a backup that is not
    whole, and StoreUnavailable; an attempt that has failed leaves a store that is of no use.
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
    """Begin a new store in an empty place; servers refuse it until its metadata is put again, as an ordinary store's.

    Raises StoreMismatch when it is not empty, also when a server that knows what was here before still writes.
    """
    _refuse_occupied(store, set())
    metadata = new_metadata(state_machine, shards)
    store.put_if_absent(METADATA_NAME, metadata.encode(RESTORING))
    # A server of what was here before finds out now, and puts nothing more, before there is anything to spoil.
    time.sleep(2 * IDENTITY_FRESH_S)
    _refuse_occupied(store, {METADATA_NAME})
    return metadata


def _refuse_occupied(store: ObjectStore, mine: set[str]) -> None:
    for info in store.list("", limit=len(mine) + 1):
        if info.name not in mine:
            raise StoreMismatch(f"{store.description} is not empty: {info.name!r} is there; empty it and begin anew")


def _state_machine(state_machines: StateMachines, name: str) -> StateMachine[Any]:
    if name not in state_machines:
        raise Damaged(METADATA_NAME, f"nothing here knows a state machine called {name!r}")
    return state_machines[name]


def _refuse_foreign(backup: ObjectStore, store_id: str) -> None:
    try:
        found = Manifest.read(backup)
    except ObjectMissing:
        occupied = backup.list("", limit=1)
        # One that was cut off has entries or blobs, and no manifest yet.
        if occupied and occupied[0].name.split("/")[0] not in ("segments", "t"):
            raise StoreMismatch(f"{backup.description} is neither empty nor a backup") from None
        return
    if found.store_id != store_id:
        raise StoreMismatch(f"{backup.description} is the backup of another store, {found.store_id}")


def _copy_entries(log: Log, backup: ObjectStore, shard: int, last: int) -> None:
    there, here = segments(backup, shard), segments(log.store, shard)
    for first in range(1, last + 1, RUN):
        end = min(last, first + RUN - 1)
        name = segment_name(shard, first)
        if first in there:
            # Copied by an earlier run; only the last one of then may have become longer.
            with_end = unpack(name, backup.get(name), store_id=log.store_id, shard=shard)
            if with_end[-1].number >= end:
                continue
        entries = _run(log, shard, first, end, in_segment=first in here)
        backup.put(name, pack(log.store_id, shard, entries))


def _run(log: Log, shard: int, first: int, end: int, *, in_segment: bool) -> list[Entry]:
    if in_segment:
        try:
            return read_segment(log, shard, first)
        except (Damaged, ObjectMissing):
            pass  # a copy of the log, which is there
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
            raise Damaged(name, f"it does not hold the entries from {first} that the backup goes up to")
        yield entries


def put_entries(store: ObjectStore, entries: Sequence[Entry]) -> None:
    """Write a run of entries of a store that nobody uses yet, the last run perhaps a short one."""
    first = entries[0]
    _each(entries, lambda entry: store.put(entry_name(entry.shard, entry.number), encode(entry)))
    if len(entries) == RUN:
        store.put(segment_name(first.shard, first.number), pack(first.store_id, first.shard, entries))


def copy_blobs(source: ObjectStore, target: ObjectStore, names: set[str], present: set[str]) -> int:
    """Copy the blobs `names`, but for those `present`, each checked against its name; returns the bytes of all."""
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
    """`work` for all items by several threads, in pieces that bound what an error leaves behind."""
    with ThreadPoolExecutor(_THREADS) as threads:
        for start in range(0, len(items), _WINDOW):
            _drain(threads.map(work, items[start : start + _WINDOW]))


def _drain(results: Iterable[None]) -> None:
    for _ in results:
        pass
