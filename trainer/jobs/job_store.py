"""The jobs as the trainer's other parts use them: reading and moving rows of the ledger, and who watches a job."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import grpc.aio
from pseudoword.names import JobName
from pseudoword.trainer.v1 import resources_pb2

from rpc import commits
from rpc.patience import Watchers, heard, patiently
from storage.errors import StorageError
from storage.ledger.entry import Revision
from storage.ledger.ledger import Ledger
from trainer.jobs import retention as loans
from trainer.jobs import state_machine as book
from trainer.jobs.conversions import job_of
from trainer.jobs.life_cycle import State
from trainer.jobs.preview_throttle import PreviewThrottle
from trainer.jobs.state_machine import SHARD, AddPicture, Command, DeletePicture, MoveJob, Row
from trainer.metrics import TrainerMetrics

Context = grpc.aio.ServicerContext[Any, Any]

_COMMIT_TIMEOUT = timedelta(seconds=30)
# A cached read shows at least what this process has changed itself or heard of. Where others change jobs too, `follow`
# hears of it.
_CACHED = timedelta.max
_POLL = timedelta(seconds=0.3)
_ACTOR = "trainer"
# What watchers of a running job hear of.
News = resources_pb2.Progress | resources_pb2.JobEvent.Preview


class JobStore:
    """One trainer's jobs. Lives on the server's event loop."""

    def __init__(self, ledger: Ledger[Command], metrics: TrainerMetrics) -> None:
        self.ledger = ledger
        self._metrics = metrics
        self._progress: dict[str, resources_pb2.Progress] = {}
        self.previews = PreviewThrottle()
        self._shown: dict[str, resources_pb2.JobEvent.Preview] = {}
        self.watchers = Watchers()
        self._work = asyncio.Event()
        self._when_moved: list[Callable[[str], None]] = []
        self._when_changed_here: list[Callable[[str], None]] = []
        self._when_told_here: list[Callable[[str, int, News], None]] = []

    async def commit(self, tenant: str, command: Command, request: Any, context: Context) -> Row:
        """A change that a client asks for. Raises what the book refuses with, and StorageErrors."""
        result = await commits.commit(self.ledger, SHARD, tenant, command, request, context, longest=_COMMIT_TIMEOUT)
        await self._changed(command)
        return result.value

    async def move(self, move: MoveJob) -> Row:
        """A change of state that the trainer itself makes, tried until the store takes it. Raises what the book refuses
        with, and Closed."""
        return await self.change(move, JobName.parse(move.name).tenant)

    async def change(self, command: Command, tenant: str) -> Row:
        """As `move`, for any command."""
        result = await commits.commit_own(self.ledger, SHARD, tenant, command, actor=_ACTOR, longest=_COMMIT_TIMEOUT)
        await self._changed(command)
        return result.value

    async def row(self, name: str, *, cached: bool = False) -> tuple[Row, Revision]:
        """A job's row, and the revision that shows it. Raises NotFound."""
        staleness = _CACHED if cached else None
        return await self.ledger.read(SHARD, lambda db: book.job(db, name), max_staleness=staleness)

    def message(self, row: Row, revision: Revision | str) -> resources_pb2.Job:
        """A row as a Job, with the progress that is known."""
        job = job_of(row, str(revision))
        progress = self._progress.get(job.name)
        if progress is not None:
            job.progress.CopyFrom(progress)
        return job

    async def next_queued(self, max_per_tenant: int) -> Row | None:
        """The job to take next; cached: the one who takes it is told by the log if it is not so."""
        row, _ = await patiently(
            lambda: self.ledger.read(SHARD, lambda db: book.next_queued(db, max_per_tenant), max_staleness=_CACHED)
        )
        return row

    async def in_state(self, state: State) -> list[Row]:
        """Rows of all jobs in `state`, oldest first."""
        rows, _ = await patiently(lambda: self.ledger.read(SHARD, lambda db: book.in_state(db, state)))
        return rows

    async def unfinished(self) -> list[Row]:
        """Rows of all jobs that have not ended, oldest first."""
        rows, _ = await patiently(lambda: self.ledger.read(SHARD, book.unfinished))
        return rows

    async def picture(self, name: str) -> Row:
        """A picture's row. Raises NotFound."""
        row, _ = await self.ledger.read(SHARD, lambda db: loans.picture(db, name))
        return row

    def tell(self, name: str, news: News) -> None:
        """A running job is a step further, or there is a new picture of how far it is."""
        if isinstance(news, resources_pb2.Progress):
            self._progress[name] = news
        else:
            self._shown[name] = news
        self.watchers.stir(name)

    def tell_all(self, name: str, attempt: int, news: News) -> None:
        """As `tell`, of an attempt of this process: others hear of it too."""
        self.tell(name, news)
        for tell in self._when_told_here:
            tell(name, attempt, news)

    def progress(self, name: str) -> resources_pb2.Progress | None:
        """How far a running job is."""
        return self._progress.get(name)

    def when_moved(self, tell: Callable[[str], None]) -> None:
        """`tell` is called with the name of every job whose state has changed, when the view shows it."""
        self._when_moved.append(tell)

    def when_changed_here(self, tell: Callable[[str], None]) -> None:
        """`tell` is called with the name of every job that this process has changed."""
        self._when_changed_here.append(tell)

    def when_told_here(self, tell: Callable[[str, int, News], None]) -> None:
        """`tell` is called with what `tell_all` is called with."""
        self._when_told_here.append(tell)

    async def follow(self) -> None:
        """Hears of what other processes change, for ever: to all who wait here it is as if it had been done here."""
        _, after = await patiently(lambda: self.ledger.read(SHARD, lambda db: None))
        while True:
            found, after = await patiently(partial(self.ledger.changes, SHARD, after, max_staleness=_POLL))
            for change in found:
                name = change.mutation.effect["name"]
                self._stir(name, moved=change.mutation.kind == "job-moved")
            if found:
                await self._count()
            else:
                await self.ledger.wait_for_changes({SHARD}, _POLL)

    def forget(self, name: str) -> None:
        """An attempt is over: what of its progress lasts is in the row."""
        self._progress.pop(name, None)
        self._shown.pop(name, None)

    def preview(self, name: str) -> resources_pb2.JobEvent.Preview | None:
        """The newest picture of a running job."""
        return self._shown.get(name)

    async def work(self, longest_s: float = 5.0) -> None:
        """Returns when `stirred` may be true, and after `longest_s` anyway."""
        await heard(self._work, longest_s)
        # A commit whose outcome was not known may have come true without anybody being told.
        self._work.set()

    def stirred(self) -> bool:
        """Whether a job may have been queued, or anything else have changed, since this was last asked."""
        stirred = self._work.is_set()
        self._work.clear()
        return stirred

    def wake(self) -> None:
        """Whoever waits for work looks again."""
        self._work.set()

    async def count(self) -> None:
        """Tells Prometheus how many jobs are in each state."""
        counts, _ = await self.ledger.read(SHARD, book.counts, max_staleness=_CACHED)
        for gauge, found in zip((self._metrics.jobs, self._metrics.evaluations), counts, strict=True):
            for state, count in found.items():
                gauge.labels(state.lower()).set(count)

    async def _changed(self, command: Command) -> None:
        self._stir(command.name, moved=isinstance(command, MoveJob))
        if not isinstance(command, AddPicture | DeletePicture):
            for tell in self._when_changed_here:
                tell(command.name)
        await self._count()

    def _stir(self, name: str, *, moved: bool) -> None:
        self._work.set()
        self.watchers.stir(name)
        if moved:
            for tell in self._when_moved:
                tell(name)

    async def _count(self) -> None:
        with suppress(StorageError):  # the change is made; the gauge will be right after the next one
            await self.count()
