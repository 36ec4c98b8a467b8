"""Inspection of a whole store: finds damaged, missing and unneeded objects, and derived objects that differ from the
log."""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from storage.errors import Damaged, ObjectMissing, TensorsInvalid
from storage.inspect.report import Report, Severity, Vectors
from storage.inspect.shard import Content, ShardInspection
from storage.ledger.log import METADATA_NAME, Backoff, Log, Metadata
from storage.ledger.state_machine import StateMachine
from storage.objects.base import ObjectStore, list_all
from storage.objects.blobs import Blobs, tenant_of
from storage.objects.disk import DiskStore
from storage.tensors import read_tensors, tensors_digest

_THREADS = 16
_WINDOW = 64


class Inspection:
    """One inspection of a store; servers may run at the same time. All methods block, for minutes on a large store."""

    def __init__(
        self,
        store: ObjectStore,
        state_machines: Mapping[str, StateMachine[Any]],
        folder: Path,
        *,
        vectors: Callable[[sqlite3.Connection], Mapping[str, Vectors]] = lambda db: {},
        views: Sequence[Path] = (),
    ) -> None:
        """`folder` is for the views built here; `views` are folders of servers' views to compare, in addition to those
        in the store itself; `vectors` reads the versions' statements about their blobs from the tables of a view.

        Raises ObjectMissing, Damaged and StoreMismatch when there is no readable store.
        """
        metadata = Metadata.read(store)
        if metadata.book not in state_machines:
            raise Damaged(METADATA_NAME, f"this version has no state machine called {metadata.book!r}")
        self._store = store
        self._state_machine = state_machines[metadata.book]
        self._log = Log(store, metadata.store_id, metadata.shards, Backoff())
        self._folder = folder
        self._vectors = vectors
        self._views = [*views, *(store.root.glob(".views/*") if isinstance(store, DiskStore) else ())]
        self.report = Report(
            store=store.description, store_id=metadata.store_id, book=metadata.book, created=metadata.created
        )
        self._known: dict[str, str] = {}  # by blob: an entry that names it
        self._live: set[str] = set()
        self._doomed: set[str] = set()
        self._described: dict[str, Vectors] = {}
        self._undecided = False

    def run(self) -> Report:
        """Read everything once. Raises StoreUnavailable and StoreRefused."""
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="inspect") as threads:
            for shard in range(self._log.shards):
                inspected = ShardInspection(
                    self._log, self._state_machine, shard, self._folder, self._views, self.report
                )
                with inspected:
                    self._add(inspected.run(threads, self._vectors))
            self._check_blobs(threads)
        self._check_names()
        return self.report

    def _add(self, content: Content) -> None:
        self._known |= content.known
        self._live |= content.live
        self._doomed |= content.doomed
        self._described |= content.described
        self._undecided = self._undecided or not content.sound

    def _check_blobs(self, threads: ThreadPoolExecutor) -> None:
        blobs = Blobs(self._store)
        present: set[str] = set()
        wanted: list[str] = []
        for info in list_all(self._store, "t/"):
            if tenant_of(info.name) is None:
                self.report.found(Severity.NOTE, info.name, "it is not the name of a blob")
                continue
            present.add(info.name)
            self.report.count("blobs")
            self.report.count("blob_bytes", info.size)
            if info.name in self._live:
                wanted.append(info.name)
            elif self._undecided:
                continue
            elif info.name in self._doomed:
                self.report.found(Severity.GARBAGE, info.name, "it is condemned: garbage collection will delete it")
            elif info.name in self._known:
                why = f"it is no longer needed; {self._known[info.name]} named it"
                self.report.found(Severity.GARBAGE, info.name, why)
            else:
                why = "no entry names it: its commit is in flight, or was never made"
                self.report.found(Severity.GARBAGE, info.name, why)
        for name in sorted(self._live - present):
            self.report.found(Severity.DAMAGE, name, f"it is missing; {self._known.get(name, 'an entry')} names it")

        def check(name: str) -> str:
            try:
                data = blobs.get(name)
            except ObjectMissing:
                return "it is missing"
            except Damaged as error:
                return error.message
            return _compare(data, self._described.get(name))

        for start in range(0, len(wanted), _WINDOW):
            some = wanted[start : start + _WINDOW]
            for name, why in zip(some, threads.map(check, some), strict=True):
                if why:
                    self.report.found(Severity.DAMAGE, name, why)

    def _check_names(self) -> None:
        """Find objects whose names do not belong to a store."""
        parts = {"log", "segments", "checkpoints", "t", "batches", "probe", METADATA_NAME}
        last = ""
        while page := self._store.list("", start_after=last, limit=1):
            first = page[0].name.split("/")[0]
            if first == "probe":
                self.report.found(Severity.GARBAGE, page[0].name, "an interrupted probe left it")
            elif first not in parts:
                self.report.found(Severity.NOTE, page[0].name, "its name does not belong to a store")
            # In ASCII, "0" comes right after "/": this skips all names that begin with the same segment.
            last = f"{first}0" if first in parts and first != METADATA_NAME and "/" in page[0].name else page[0].name


def _compare(data: bytes, described: Vectors | None) -> str:
    """The fault of a blob whose bytes have the digest in its name; empty when there is none."""
    if described is None:
        return ""
    if len(data) != described.size:
        return f"it has {len(data)} bytes, and its version states {described.size}"
    try:
        digest = tensors_digest(read_tensors(data))
    except TensorsInvalid as error:
        return f"its vectors cannot be read: {error.message}"
    return "" if digest == described.tensors_digest else f"its tensors have the digest {digest}, not its version's"
