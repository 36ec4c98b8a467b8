"""`Ledger`: the commit log and its derived views for servers: commit, read and watch, from asyncio."""

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
# A strong read waits behind an entry in doubt. This limit lets its caller get UNAVAILABLE before its own deadline.
_CHECK_TIMEOUT_S = 10.0


def shard_of(tenant: str, shards: int) -> int:
    """The shard of a tenant; it never changes."""
    return int.from_bytes(hashlib.sha256(tenant.encode()).digest()[:8], "big") % shards


class Ledger(Generic[C]):
    """The ledger of one state machine, with commands of type C. Used by one event loop; a shard is opened at its first
    use."""

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
        """Open the ledger of `state_machine` in `store`, and create it if it is missing. `view_folder` may be missing,
        empty or out of date. With `maintenance`, missing segments and snapshots are written in the background.

        Blocks. Raises StoreMismatch, Damaged, StoreUnavailable, StoreRefused, and ViewInUse when another process uses
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
        """Whether a check has found another store in the place of the opened one. All calls then fail."""
        return self._log.identity.replaced

    def refuse_replaced(self) -> None:
        """Raises StoreReplaced if an earlier check has found the store replaced. Makes no request."""
        if self.replaced:
            self._log.identity.check()

    def beginning(self, shard: int) -> Revision:
        """The revision before the first event: a watch from it yields the shard's whole history."""
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
        """Decide `command` against the state after all earlier commits, and commit its events.

        `digest` is the digest of the request's body: within 7 days, the same `request_id` of the same `tenant` with the
        same digest gets the first answer again. With `validate_only` the answer is computed and nothing is committed.

        Raises the state machine's own errors; RequestIdReused; OutcomeUnknown when `timeout_s` ends while the commit is
        in flight (repeat the call with the same request id); NotCommitted and Contention when it is certain that
        nothing was committed; EntryTooLarge, ClockSkew, StoreRefused, StoreReplaced, Damaged, Closed.
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
            raise NotCommitted(f"the commit did not start within {timeout_s:g} s and nothing was changed: try again")
        raise OutcomeUnknown(
            f"the commit did not finish within {timeout_s:g} s and its outcome is unknown: repeat the call with the "
            "same request id",
            request_id=request_id,
        )

    async def read(
        self, shard: int, fn: Callable[[sqlite3.Connection], T], *, max_staleness: timedelta | None = None
    ) -> tuple[T, Revision]:
        """Run `fn` in a thread on a consistent snapshot of the shard's view; also returns the snapshot's revision.

        Strong unless `max_staleness` allows an older view: the snapshot then shows every commit that was answered
        before this call. `fn` must not keep the connection. Raises the errors of `fn`, StoreUnavailable, StoreRefused,
        StoreReplaced, Damaged, Closed.
        """
        writer = await self._fresh(shard, max_staleness)

        def work() -> tuple[T, Revision]:
            with writer.view.snapshot() as (db, revision):
                return fn(db), revision

        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def revision(self, shard: int, *, max_staleness: timedelta | None = None) -> Revision:
        """The revision that a read started now would show, or an earlier one; see `read`. Needs no reader thread and no
        query.

        While the revision stays the same, so does every answer from the view. Raises the errors of `read`.
        """
        at = (await self._fresh(shard, max_staleness)).view.position
        return Revision(store_id=self.store_id, shard=shard, entry=at.entry, index=at.index)

    async def changes(
        self, shard: int, after: Revision, *, limit: int = 256, max_staleness: timedelta | None = None
    ) -> tuple[Sequence[CommittedEvent], Revision]:
        """Up to `limit` events after `after`, in order, and the revision up to which the list is complete: that of the
        last event when the limit was reached, else that of the view.

        Raises StoreChanged, BadRevision, RevisionAhead, and the errors of `read`.
        """
        after.check(self.store_id, shard)
        now = await self.revision(shard, max_staleness=max_staleness)
        if now == after:
            # The common case of a watch that polls: it costs no thread and no query.
            return (), now
        found, now = await self.read(shard, lambda db: changes_after(db, after, limit), max_staleness=max_staleness)
        if after.place > now.place and max_staleness is not None:
            # The revision may come from another replica, and this view may only be behind: read strongly.
            found, now = await self.read(shard, lambda db: changes_after(db, after, limit))
        if after.place > now.place:
            raise RevisionAhead(f"revision {after} is ahead of the log, which is at {now}", revision=str(after))
        return found, found[-1].revision if len(found) == limit else now

    async def watch(self, shard: int, after: Revision) -> AsyncIterator[CommittedEvent]:
        """Every event after `after`, in order, once each. Never ends by itself. Raises the errors of `changes`."""
        while True:
            found, after = await self.changes(shard, after, max_staleness=_POLL)
            for event in found:
                yield event
            if not found:
                await self.wait_for_changes({shard}, _POLL)

    async def wait_for_changes(self, shards: set[int], timeout: timedelta) -> None:
        """Returns when a view of `shards` has moved, or after `timeout`. The caller must then poll: commits of other
        replicas notify nobody."""
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
        """Returns when a check finds another store in the place of the opened one. The server should then exit and be
        started again."""
        found, loop = asyncio.Event(), asyncio.get_running_loop()

        def notify() -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(found.set)

        self._log.identity.when_replaced(notify)
        await found.wait()

    async def close(self) -> None:
        """Stop. Waiting commands get Closed, commits in flight OutcomeUnknown."""
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
        """The shard's writer, once its view is new enough for `max_staleness`."""
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
            raise BadRevision(f"shard {shard} does not exist; the store has the shards 0 to {self.shards - 1}")
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
                moved=lambda: self._notify_watchers(shard),
            )
            self._writers[shard] = writer
        return writer

    def _notify_watchers(self, shard: int) -> None:
        # Called from a shard's thread. The copy of the set is atomic under the GIL.
        for watched, moved, loop in list(self._watchers):
            if watched == shard:
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(moved.set)


def _ignore(answer: "asyncio.Future[Any]") -> None:
    """Retrieve the exception of an abandoned future, so that asyncio does not log it as never retrieved."""
    answer.add_done_callback(lambda future: future.cancelled() or future.exception())


def _lock_folder(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise ViewInUse(f"another process uses the view folder {folder}; give each server its own folder") from None
    return lock
