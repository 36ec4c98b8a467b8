"""Inspection of one shard: its log is replayed and compared with its segments, snapshots and views."""

import sqlite3
from bisect import insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from storage.errors import Damaged, ObjectMissing
from storage.inspect.report import Report, Severity, Vectors
from storage.inspect.table_digest import digests
from storage.ledger.entry import Entry, entry_name
from storage.ledger.log import Log
from storage.ledger.segments import RUN, first_of_run, read_segment, segment_name, segments
from storage.ledger.snapshots import snapshots, unpack_snapshot
from storage.ledger.state_machine import StateMachine
from storage.ledger.view import View
from storage.objects.base import list_all
from storage.objects.blobs import tenant_of

_WINDOW = 64


@dataclass(kw_only=True)
class Content:
    """The blobs of a shard. `known`: each blob that an entry names, and one such entry. `live`: the blobs that must
    exist. `doomed`: those that may be deleted. `described`: the versions' statements. If the log is not `sound` to its
    end, only `known` is filled."""

    known: dict[str, str] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)
    doomed: set[str] = field(default_factory=set)
    described: dict[str, Vectors] = field(default_factory=dict)
    sound: bool = True


class ShardInspection:
    """Replays one shard's entries in order, and compares each derived object at the entry that it belongs to.

    with ShardInspection(...) as inspected:
        inspected.run(threads, vectors)
    """

    def __init__(
        self,
        log: Log,
        state_machine: StateMachine[Any],
        shard: int,
        folder: Path,
        views: Sequence[Path],
        report: Report,
    ) -> None:
        """Findings go into `report`. `folder` is for temporary files; `views` are the folders of servers' views."""
        self._log = log
        self._state_machine = state_machine
        self._shard = shard
        self._folder = folder
        self._views = views
        self._report = report
        self._stack = ExitStack()
        # [(entry, name, tables)], sorted by entry
        self._copies: list[tuple[int, str, sqlite3.Connection]] = []
        self._segments: set[int] = set()
        self._run: list[Entry] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(
        self, threads: ThreadPoolExecutor, vectors: Callable[[sqlite3.Connection], Mapping[str, Vectors]]
    ) -> Content:
        """Read all objects of the shard. Raises StoreUnavailable and StoreRefused."""
        shard, report, content = self._shard, self._report, Content()
        path = self._folder / f"shard-{shard}.sqlite"
        view = View(path, store_id=self._log.store_id, shard=shard, state_machine=self._state_machine)
        self._stack.callback(view.close)
        # Opened before the entries are listed, so that no derived object can be ahead of the listed entries.
        self._open_copies(view)
        self._segments = segments(self._log.store, shard)
        numbers = self._numbers()
        last = numbers[-1] if numbers else 0
        holes = self._check_holes(numbers)
        for entry in self._entries(numbers, threads):
            if entry is None or entry.number in holes:
                content.sound = False
            if entry is None:
                continue
            report.count("entries")
            report.count("mutations", len(entry.events))
            for event in entry.events:
                for name in blob_names(event.body):
                    content.known.setdefault(name, entry_name(shard, entry.number))
            self._check_segment(entry)
            if content.sound:
                content.sound = self._replay(view, entry)
        report.revisions.append(view.position.entry)
        self._compare(view, upto=last + 1)
        if content.sound:
            with view.snapshot() as (db, _):
                content.live.update(self._state_machine.blobs(db))
                content.doomed.update(name for name in content.known if self._state_machine.doomed(db, name))
                content.described.update(vectors(db))
        else:
            report.found(
                Severity.DAMAGE, f"log/{shard}/", f"the state after entry {view.position.entry} cannot be computed"
            )
        for first in sorted(self._segments):
            if first_of_run(first) != first or first + RUN - 1 > last:
                report.found(Severity.DERIVED, segment_name(shard, first), "the log has no such run of entries")
        return content

    def _numbers(self) -> list[int]:
        prefix, found = f"log/{self._shard}/", []
        for info in list_all(self._log.store, prefix):
            number = info.name.removeprefix(prefix)
            if number.isdecimal() and info.name == entry_name(self._shard, int(number)):
                found.append(int(number))
            else:
                self._report.found(Severity.NOTE, info.name, "it is not the name of an entry")
        return found

    def _check_holes(self, numbers: Sequence[int]) -> set[int]:
        """The entries whose previous entry is missing."""
        after: set[int] = set()
        expected = 1
        for number in numbers:
            for missing in range(expected, number):
                self._report.found(
                    Severity.DAMAGE, entry_name(self._shard, missing), "it is missing, and later entries exist"
                )
            if number != expected:
                after.add(number)
            expected = number + 1
        return after

    def _entries(self, numbers: Sequence[int], threads: ThreadPoolExecutor) -> Iterator[Entry | None]:
        """Each entry in order; None in the place of a damaged one."""

        def read(number: int) -> Entry | Damaged:
            try:
                entry = self._log.read(self._shard, number)
            except Damaged as error:
                return error
            return entry or Damaged(entry_name(self._shard, number), "it was deleted during the inspection")

        for start in range(0, len(numbers), _WINDOW):
            for entry in threads.map(read, numbers[start : start + _WINDOW]):
                if isinstance(entry, Damaged):
                    self._report.found(Severity.DAMAGE, entry.metadata["object"], entry.message)
                    yield None
                else:
                    yield entry

    def _replay(self, view: View, entry: Entry) -> bool:
        name = entry_name(self._shard, entry.number)
        if entry.time_us <= view.position.time_us:
            self._report.found(Severity.DAMAGE, name, "its time is not after the previous entry's")
            return False
        self._compare(view, upto=entry.number)
        try:
            view.replay(entry)
        except Exception as error:  # `apply` may raise anything for an event that should never have been committed
            self._report.found(Severity.DAMAGE, name, f"it cannot be applied: {error!r}")
            return False
        return True

    def _check_segment(self, entry: Entry) -> None:
        if first_of_run(entry.number) == entry.number:
            self._run = []
        self._run.append(entry)
        first = first_of_run(entry.number)
        if entry.number != first + RUN - 1 or first not in self._segments:
            return
        self._report.count("segments")
        name = segment_name(self._shard, first)
        try:
            same = read_segment(self._log, self._shard, first) == self._run
        except ObjectMissing:
            return
        except Damaged as error:
            self._report.found(Severity.DERIVED, name, error.message)
            return
        if not same:
            self._report.found(Severity.DERIVED, name, "its entries differ from the log's")

    def _open_copies(self, view: View) -> None:
        for number, snapshot in enumerate(snapshots(self._log.store, self._shard)):
            path = self._folder / f"snapshot-{self._shard}-{number}.sqlite"
            self._report.count("checkpoints")
            try:
                unpack_snapshot(self._log.store, snapshot, None, path)
            except ObjectMissing:
                continue
            except Damaged as error:
                self._report.found(Severity.DERIVED, snapshot.name, error.message)
                continue
            self._stack.callback(path.unlink, missing_ok=True)
            self._open_copy(view, snapshot.name, path)
        for folder in self._views:
            path = folder / f"shard-{self._shard}.sqlite"
            if path.exists():
                self._report.count("views")
                self._open_copy(view, str(path), path)

    def _open_copy(self, view: View, name: str, path: Path) -> None:
        db = self._stack.enter_context(closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)))
        db.isolation_level = None
        try:
            # The transaction stays open until the comparison, because a server may continue to write to its view.
            db.execute("BEGIN")
            identity, entry = db.execute("SELECT identity, entry FROM ledger_view").fetchone()
        except (sqlite3.DatabaseError, TypeError) as error:
            self._report.found(Severity.DERIVED, name, f"it is not a view: {error}")
            return
        if identity != view.identity:
            self._report.found(
                Severity.NOTE, name, "it was not compared: it belongs to another store or has another schema version"
            )
            return
        insort(self._copies, (entry, name, db), key=lambda copy: copy[:2])

    def _compare(self, view: View, *, upto: int) -> None:
        """Compare the copies that end before entry `upto` with the replayed tables."""
        while self._copies and self._copies[0][0] < upto:
            entry, name, copy = self._copies.pop(0)
            if entry != view.position.entry:
                why = f"it was not compared: it ends at entry {entry}, which could not be replayed"
                self._report.found(Severity.NOTE, name, why)
                continue
            with view.snapshot() as (db, _):
                expected = digests(db)
            try:
                found = digests(copy)
            except sqlite3.DatabaseError as error:
                self._report.found(Severity.DERIVED, name, f"it cannot be read: {error}")
                continue
            wrong = sorted(table for table in expected.keys() | found.keys() if expected.get(table) != found.get(table))
            if wrong:
                self._report.found(Severity.DERIVED, name, f"its tables differ from the log: {', '.join(wrong)}")


def blob_names(value: Any) -> Iterator[str]:
    """All blob names in a JSON value."""
    match value:
        case str() if tenant_of(value) is not None:
            yield value
        case dict():
            for item in value.values():
                yield from blob_names(item)
        case list():
            for item in value:
                yield from blob_names(item)
