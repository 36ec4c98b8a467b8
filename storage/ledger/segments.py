"""Segments: each holds a run of 1,024 entries in one object, so that a replay reads few objects.

The name is `segments/<shard>/<first entry, 20 digits>`. The log remains authoritative: its entries are never deleted,
and a missing or damaged segment only costs time.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import structlog

from storage.errors import Damaged, ObjectExists, ObjectMissing, StorageError
from storage.ledger import frames
from storage.ledger.entry import Entry, decode, encode, entry_name
from storage.ledger.log import Log
from storage.objects.base import ObjectStore, list_all

RUN = 1024
_FORMAT = 1
# Entries read at once. Bounded by a small pod's memory (entries of 64 KiB) and by the number of connections.
_WINDOW = 32
_THREADS = 8
# The first entries are read one by one, without read-ahead: a replica that keeps up finds one new entry, rarely more.
_SERIAL = 4

_logger = structlog.get_logger(__name__)


def segment_name(shard: int, first: int) -> str:
    return f"segments/{shard}/{first:020d}"


def first_of_run(number: int) -> int:
    """The first entry of the run that entry `number` belongs to: 1, 1025, 2049."""
    return number - (number - 1) % RUN


def segments(store: ObjectStore, shard: int, start: int = 1) -> set[int]:
    """The first entries of all segments that hold entry `start` or later ones. The segments may be damaged."""
    prefix = f"segments/{shard}/"
    before = segment_name(shard, first_of_run(start) - 1)
    numbers = (info.name.removeprefix(prefix) for info in list_all(store, prefix, start_after=before))
    return {int(number) for number in numbers if number.isdecimal()}


def pack(store_id: str, shard: int, entries: Sequence[Entry]) -> bytes:
    """A segment of `entries`, which are consecutive."""
    data = b"\n".join(encode(entry) for entry in entries)
    header = {"format": _FORMAT, "store_id": store_id, "shard": shard, "first": entries[0].number}
    return frames.encode(header | {"count": len(entries), "bytes": len(data)}, zlib.compress(data, 6))


def unpack(name: str, data: bytes, *, store_id: str, shard: int) -> list[Entry]:
    """The entries of a segment, each with the same checks as an entry read from the log. Raises Damaged."""
    header, payload = frames.decode(name, data)
    try:
        known = (header["format"], header["store_id"], header["shard"]) == (_FORMAT, store_id, shard)
        first, count, size = int(header["first"]), int(header["count"]), int(header["bytes"])
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(name, f"it is not a segment ({type(error).__name__})") from error
    if not known:
        raise Damaged(name, "it belongs to another store or shard, or this version does not support its format")
    lines = frames.decompress(name, payload, size).split(b"\n")
    if len(lines) != count:
        raise Damaged(name, f"it holds {len(lines)} entries instead of {count}")
    try:
        return [decode(line, store_id=store_id, shard=shard, number=first + n) for n, line in enumerate(lines)]
    except Damaged as error:
        raise Damaged(name, f"in this segment, {error.message}") from error


def read_segment(log: Log, shard: int, first: int) -> list[Entry]:
    """The run that begins with entry `first`. Raises ObjectMissing, Damaged, StoreUnavailable."""
    name = segment_name(shard, first)
    entries = unpack(name, log.store.get(name), store_id=log.store_id, shard=shard)
    if len(entries) != RUN or entries[0].number != first:
        raise Damaged(name, f"it does not hold the {RUN} entries from {first}")
    return entries


def write_missing(log: Log, shard: int, last: int, stopped: Callable[[], bool]) -> int:
    """Write a segment for every full run up to entry `last` that has none. Returns how many were written.

    Raises the errors of reading the log; a run with a damaged entry is never copied.
    """
    present = segments(log.store, shard)
    written = 0
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="segment") as threads:
        for first in range(1, last - RUN + 2, RUN):
            if first in present:
                continue
            entries: list[Entry] = []
            for start in range(first, first + RUN, _WINDOW):
                if stopped():
                    return written
                for entry in _window(log, shard, range(start, start + _WINDOW), threads):
                    if entry is None:
                        missing = entry_name(shard, first + len(entries))
                        raise Damaged(missing, "it is missing, and later entries exist")
                    entries.append(entry)
            with suppress(ObjectExists):
                log.store.put_if_absent(segment_name(shard, first), pack(log.store_id, shard, entries))
            written += 1
    return written


def entries_after(log: Log, shard: int, after: int) -> Iterator[Entry]:
    """All entries after entry `after`, in order, at least up to the end that the log had at the time of the call.

    The first few are read one by one; further ones by several threads, from segments or with read-ahead. Raises Damaged
    (also for a missing entry before later ones), StoreUnavailable, StoreRefused.
    """
    for number in range(after + 1, after + 1 + _SERIAL):
        entry = log.read(shard, number)
        if entry is None:
            return
        yield entry
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="replay") as threads:
        yield from _Replay(log, shard, after + 1 + _SERIAL, threads).entries()


class _Replay:
    """A long read of the log from entry `number` on."""

    def __init__(self, log: Log, shard: int, number: int, threads: ThreadPoolExecutor) -> None:
        self._log = log
        self._shard = shard
        self._number = number
        self._threads = threads
        self._segments = segments(log.store, shard, number)
        self._ahead: dict[int, Future[list[Entry]]] = {}

    def entries(self) -> Iterator[Entry]:
        missing: int | None = None
        while True:
            found = self._run() if first_of_run(self._number) in self._segments else self._singles()
            yield from found
            self._number += len(found)
            if found:
                missing = None
                continue
            later = self._log.store.list(
                f"log/{self._shard}/", start_after=entry_name(self._shard, self._number), limit=1
            )
            if not later:
                return
            if missing == self._number:
                # The entry was read again after a later one had been listed. Entries are created in order, so it has
                # been deleted.
                name = entry_name(self._shard, self._number)
                raise Damaged(name, f"it is missing, and the later {later[0].name!r} exists")
            missing = self._number

    def _run(self) -> list[Entry]:
        """The rest of the run, from its segment; the next segment is read ahead. Falls back to single entries when the
        segment is missing or damaged."""
        first = first_of_run(self._number)
        for wanted in (first, first + RUN):
            if wanted in self._segments and wanted not in self._ahead:
                self._ahead[wanted] = self._threads.submit(read_segment, self._log, self._shard, wanted)
        try:
            return self._ahead.pop(first).result()[self._number - first :]
        except (Damaged, ObjectMissing) as error:
            _logger.warning("segment not used", error=error.message)
            self._segments.discard(first)
            return self._singles()

    def _singles(self) -> list[Entry]:
        end = min(self._number + _WINDOW, first_of_run(self._number) + RUN)
        found: list[Entry] = []
        try:
            for entry in _window(self._log, self._shard, range(self._number, end), self._threads):
                if entry is None:
                    break
                found.append(entry)
        except StorageError:
            # Return the entries before the unreadable one; the error is raised once it is the first of a window.
            if not found:
                raise
        return found


def _window(log: Log, shard: int, numbers: range, threads: ThreadPoolExecutor) -> Iterator[Entry | None]:
    return threads.map(lambda number: log.read(shard, number), numbers)
