"""The commit log and its derived views as servers use them: commit, read, watch, from asyncio."""

import asyncio
import fcntl
import hashlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

from storage.errors import BadRevision, Closed, NotCommitted, OutcomeUnknown, RevisionAhead, StoreUnavailable, ViewInUse
from storage.ledger.entry import Revision
from storage.ledger.log import Backoff, Log
from storage.ledger.maintenance import Maintenance
from storage.ledger.metrics import LedgerMetrics
from storage.ledger.pending import Pending, Result
from storage.ledger.state_machine import CommittedEvent, StateMachine
from storage.ledger.view import changes_after
from storage.ledger.writer import ShardWriter
from storage.objects.base import ObjectStore

C = TypeVar("C")
T = TypeVar("T")

_READERS = 8
_POLL = timedelta(seconds=0.3)
# A strong read waits behind an entry that is in doubt; its caller should hear UNAVAILABLE before its own deadline.
_CHECK_TIMEOUT_S = 10.0


def shard_of(tenant: str, shards: int) -> int:
    """The shard that a tenant belongs to, for ever."""
    return int.from_bytes(hashlib.sha256(tenant.encode()).digest()[:8], "big") % shards


class Ledger(Generic[C]):
    """Commands of type C, kept by a Book. Used by one event loop; a shard is opened when it is first used."""

    def __init__(
        self,
        log: Log,
        state_machine: StateMachine[C],
        view_folder: Path,
        metrics: LedgerMetrics | None = None,
        *,
        maintenance: bool = True,
    ) -> None:
        self._log = log
        self._state_machine = state_machine
        self._folder = view_folder
        self._lock = _lock_folder(view_folder)
        self._metrics = metrics or LedgerMetrics()
        self._maintenance = Maintenance(log, self._metrics)
        if not maintenance:
            self._maintenance.close()
        self._writers: dict[int, ShardWriter] = {}
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="view")
        self._watchers: set[tuple[int, asyncio.Event, asyncio.AbstractEventLoop]] = set()
        self._closed = False

    @classmethod
    def open(
        cls,
        store: ObjectStore,
        state_machine: StateMachine[C],
        *,
        shards: int,
        view_folder: Path,
        backoff: Backoff | None = None,
        metrics: LedgerMetrics | None = None,
        maintenance: bool = True,
    ) -> "Ledger[C]":
        """Open the ledger of `book` in `store`, made if there is none; `view_folder` may be empty, lost or old. With
        `upkeep`, segments and checkpoints that are missing are written.

        Blocks. Raises StoreMismatch, Damaged, StoreUnavailable, StoreRefused, and ViewInUse when another process has
        the folder. Does not probe the store.
        """
        log = Log.open(store, book=state_machine.name, shards=shards, backoff=backoff)
        return cls(log, state_machine, view_folder, metrics, maintenance=maintenance)

    @property
    def store_id(self) -> str:
        return self._log.store_id

    @property
    def shards(self) -> int:
        return self._log.shards

    @property
    def replaced(self) -> bool:
        """Whether the store was found to be another one than was opened: nothing is answered any more."""
        return self._log.identity.replaced

    def refuse_replaced(self) -> None:
        """Raises StoreReplaced if that is known already; asks nobody."""
        if self.replaced:
            self._log.identity.check()

    def beginning(self, shard: int) -> Revision:
        """The revision before everything: a watch from it tells the shard's whole history."""
        return Revision(store_id=self.store_id, shard=shard, entry=0, index=0)

    async def commit(
        self,
        shard: int,
        command: C,
        *,
        request_id: str,
        tenant: str,
        digest: str,
        actor: str,
        on_behalf_of: str | None,
        timeout_s: float,
        validate_only: bool = False,
    ) -> Result:
        """Decide `command` after everything that was committed before, and make its effects durable.

        `digest` names the request's body: the same `request_id` of the same `tenant` with the same digest within 7 days
        gets the first answer. `validate_only` gives the answer that it would get, and changes nothing.

        Raises the book's own refusals; RequestIdReused; OutcomeUnknown when `timeout_s` ends first and it may be
        committed or not (ask again with the same id); NotCommitted and Contention when it certainly is not;
        EntryTooLarge, ClockSkew, StoreRefused, StoreReplaced, Damaged, Closed.
        """
        pending = Pending(
            command,
            tenant=tenant,
            request_id=request_id,
            digest=digest,
            actor=actor,
            on_behalf_of=on_behalf_of or "",
            validate_only=validate_only,
        )
        self._writer(shard).submit(pending)
        answer = asyncio.wrap_future(pending.done)
        try:
            done, _ = await asyncio.wait({answer}, timeout=timeout_s)
        except asyncio.CancelledError:
            pending.abandon()
            _ignore(answer)
            raise
        if done:
            return answer.result()
        _ignore(answer)
        if pending.abandon():
            raise NotCommitted(f"the store took no change within {timeout_s:g} s; nothing was changed: try again")
        raise OutcomeUnknown(
            f"it is not known after {timeout_s:g} s whether the change was made: ask again with the same request id",
            request_id=request_id,
        )

    async def read(
        self, shard: int, fn: Callable[[sqlite3.Connection], T], *, max_staleness: timedelta | None = None
    ) -> tuple[T, Revision]:
        """`fn` of one moment of the shard's view, in a thread, and the revision of that moment.

        Strong unless `max_staleness` allows an older view: it shows every change that was answered before this call.
        `fn` must not keep the connection. Raises what `fn` raises, StoreUnavailable, StoreRefused, StoreReplaced,
        Damaged, Closed.
        """
        writer = await self._fresh(shard, max_staleness)

        def work() -> tuple[T, Revision]:
            with writer.view.snapshot() as (db, revision):
                return fn(db), revision

        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def revision(self, shard: int, *, max_staleness: timedelta | None = None) -> Revision:
        """The revision that a read begun now would show, or one before it; see `read`. Asks no thread and no database.

        While it stays the same, so does every answer from the view. Raises what `read` raises.
        """
        at = (await self._fresh(shard, max_staleness)).view.position
        return Revision(store_id=self.store_id, shard=shard, entry=at.entry, index=at.index)

    async def changes(
        self, shard: int, after: Revision, *, limit: int = 256, max_staleness: timedelta | None = None
    ) -> tuple[Sequence[CommittedEvent], Revision]:
        """Up to `limit` changes after `after` in order, and the revision up to which there are no others: that of the
        last one given, or of the view when all of them were.

        Raises StoreChanged, BadRevision, RevisionAhead, and what `read` raises.
        """
        after.check(self.store_id, shard)
        now = await self.revision(shard, max_staleness=max_staleness)
        if now == after:
            # Most looks of most watches: they cost no thread and no database, however many there are.
            return (), now
        found, now = await self.read(shard, lambda db: changes_after(db, after, limit), max_staleness=max_staleness)
        if after.place > now.place and max_staleness is not None:
            # Told by another replica, perhaps, which this view is only behind.
            found, now = await self.read(shard, lambda db: changes_after(db, after, limit))
        if after.place > now.place:
            raise RevisionAhead(f"revision {after} is ahead of the log, which is at {now}", revision=str(after))
        return found, found[-1].revision if len(found) == limit else now

    async def watch(self, shard: int, after: Revision) -> AsyncIterator[CommittedEvent]:
        """Every change after `after`, in order, once each, for ever. Raises what `changes` raises."""
        while True:
            found, after = await self.changes(shard, after, max_staleness=_POLL)
            for event in found:
                yield event
            if not found:
                await self.wait_for_changes({shard}, _POLL)

    async def wait_for_changes(self, shards: set[int], timeout: timedelta) -> None:
        """Returns when a view of `shards` has moved, or after `timeout`: others' commits are found by asking."""
        moved, loop = asyncio.Event(), asyncio.get_running_loop()
        watchers = {(shard, moved, loop) for shard in shards}
        self._watchers |= watchers
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout.total_seconds()):
                    await moved.wait()
        finally:
            self._watchers -= watchers

    async def until_replaced(self) -> None:
        """Returns when the store is found to be another one than was opened; whoever serves should end, and begin
        anew."""
        found, loop = asyncio.Event(), asyncio.get_running_loop()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(found.set)

        self._log.identity.when_replaced(tell)
        await found.wait()

    async def close(self) -> None:
        """Stop. What waits gets Closed, what is on its way OutcomeUnknown."""
        if self._closed:
            return
        self._closed = True
        await asyncio.gather(*(asyncio.to_thread(writer.stop) for writer in self._writers.values()))
        await asyncio.to_thread(self._readers.shutdown)
        await asyncio.to_thread(self._maintenance.close)
        for writer in self._writers.values():
            writer.close()
        os.close(self._lock)

    async def _fresh(self, shard: int, max_staleness: timedelta | None) -> ShardWriter:
        """The shard's writer, once its view is as new as it must be."""
        writer = self._writer(shard)
        if max_staleness is None or writer.age_s() > max_staleness.total_seconds():
            self._metrics.strong.inc()
            await self._checked(writer)
        else:
            self._metrics.cached.inc()
        if self._closed:
            raise Closed("the ledger is closed")
        self.refuse_replaced()
        return writer

    async def _checked(self, writer: ShardWriter) -> None:
        check = asyncio.wrap_future(writer.check())
        try:
            done, _ = await asyncio.wait({check}, timeout=_CHECK_TIMEOUT_S)
        finally:
            _ignore(check)
        if not done:
            raise StoreUnavailable(f"the shard's view is not up to date after {_CHECK_TIMEOUT_S:g} s; try again")
        check.result()

    def _writer(self, shard: int) -> ShardWriter:
        if self._closed:
            raise Closed("the ledger is closed")
        if not 0 <= shard < self.shards:
            raise BadRevision(f"there is no shard {shard}: 0 to {self.shards - 1}")
        writer = self._writers.get(shard)
        if writer is None:
            path = self._folder / f"shard-{shard}.sqlite"
            writer = ShardWriter(
                self._log,
                self._state_machine,
                shard,
                path,
                maintenance=self._maintenance,
                metrics=self._metrics,
                moved=lambda: self._tell(shard),
            )
            self._writers[shard] = writer
        return writer

    def _tell(self, shard: int) -> None:
        # Called from a shard's thread. The set's copy is one step under the interpreter's lock.
        for watched, moved, loop in list(self._watchers):
            if watched == shard:
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(moved.set)


def _ignore(answer: "asyncio.Future[Any]") -> None:
    """Nobody will ask for this answer: an error in it is no news."""
    answer.add_done_callback(lambda future: future.cancelled() or future.exception())


def _lock_folder(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise ViewInUse(f"another process uses the view folder {folder}; give each server one of its own") from None
    return lock
