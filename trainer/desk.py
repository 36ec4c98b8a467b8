"""The jobs as the trainer's other parts use them: reading and moving rows of the ledger, and who watches a job."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import grpc.aio
from pseudoword.names import JobName
from pseudoword.trainer.v1 import resources_pb2

from rpc import commits
from rpc.patience import Watchers, heard, patiently
from storage.entry import Revision
from storage.errors import StorageError
from storage.ledger import Ledger
from trainer import book, loans
from trainer.book import SHARD, Command, KeepFirst, MoveJob, Row
from trainer.jobs import State
from trainer.messages import job_of
from trainer.metrics import TrainerMetrics
from trainer.previews import Previews

Context = grpc.aio.ServicerContext[Any, Any]

_COMMIT_TIMEOUT = timedelta(seconds=30)
# All changes of jobs are made by this process, so its own view misses none of them.
_CACHED = timedelta.max
_ACTOR = "trainer"


class Desk:
    """One trainer's jobs. Lives on the server's event loop."""

    def __init__(self, ledger: Ledger[Command], metrics: TrainerMetrics) -> None:
        self.ledger = ledger
        self._metrics = metrics
        self._progress: dict[str, resources_pb2.Progress] = {}
        self.previews = Previews()
        self._shown: dict[str, resources_pb2.JobEvent.Preview] = {}
        self.watchers = Watchers()
        self._work = asyncio.Event()
        self._told: list[Callable[[str], None]] = []

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

    async def picture(self, name: str) -> Row:
        """A picture's row. Raises NotFound."""
        row, _ = await self.ledger.read(SHARD, lambda db: loans.picture(db, name))
        return row

    def tell(self, name: str, progress: resources_pb2.Progress) -> None:
        """A running job is a step further."""
        self._progress[name] = progress
        self.watchers.stir(name)

    def progress(self, name: str) -> resources_pb2.Progress | None:
        """How far a running job is."""
        return self._progress.get(name)

    def when_moved(self, tell: Callable[[str], None]) -> None:
        """`tell` is called with the name of every job whose state has changed, when the view shows it."""
        self._told.append(tell)

    def forget(self, name: str) -> None:
        """An attempt is over: what of its progress lasts is in the row."""
        self._progress.pop(name, None)
        self._shown.pop(name, None)

    def show(self, name: str, preview: resources_pb2.JobEvent.Preview) -> None:
        """There is a new picture of how far a running job is."""
        self._shown[name] = preview
        self.watchers.stir(name)

    def preview(self, name: str) -> resources_pb2.JobEvent.Preview | None:
        """The newest picture of a running job."""
        return self._shown.get(name)

    async def work(self) -> None:
        """Returns when `stirred` may be true, and every few seconds."""
        await heard(self._work)
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
        found, _ = await self.ledger.read(SHARD, book.counts, max_staleness=_CACHED)
        for state, count in found.items():
            self._metrics.jobs.labels(state.lower()).set(count)

    async def _changed(self, command: Command) -> None:
        self._work.set()
        if isinstance(command, MoveJob | KeepFirst):
            self.watchers.stir(command.name)
            for tell in self._told:
                tell(command.name)
        with suppress(StorageError):  # the change is made; the gauge will be right after the next one
            await self.count()
