"""Which job is trained next, where one process has the log for itself: the queue is the log."""

from collections import deque

from rpc.errors import FailedPrecondition
from trainer.jobs.commands import MoveJob
from trainer.jobs.job_store import JobStore
from trainer.jobs.life_cycle import Move, State
from trainer.jobs.tables import Row
from trainer.worker.attempt import Attempt
from trainer.worker.completion import JobCompletion
from trainer.worker.job_queue import workers_lost


class LogQueue:
    """A JobQueue: what is QUEUED in the log waits; there is nothing else to lose."""

    def __init__(
        self, job_store: JobStore, completion: JobCompletion, *, max_per_tenant: int, max_worker_deaths: int
    ) -> None:
        """A tenant has at most `max_per_tenant` jobs trained at once; `max_worker_deaths` workers may die of a job."""
        self._job_store = job_store
        self._completion = completion
        self._max_per_tenant = max_per_tenant
        self._max_worker_deaths = max_worker_deaths
        self._fixed: deque[Row] = deque()

    async def open(self) -> None:
        """Whoever was RUNNING was killed with its server: it waits again, or has FAILED when too many were killed with
        it."""
        self._fixed.extend(await self._job_store.in_state(State.PUBLISHING))
        for row in await self._job_store.in_state(State.RUNNING):
            name, attempt = row["name"], row["attempt"]
            if row["worker_deaths"] + 1 < self._max_worker_deaths:
                await self._job_store.move(MoveJob(name=name, move=Move.WORKER_DIED, attempt=attempt))
            else:
                await self._completion.fail(name, attempt, workers_lost(name, self._max_worker_deaths))
        self._job_store.events.wake()

    async def run(self) -> None:
        """The desk is woken by every change of the log."""

    async def next(self) -> Row | None:
        """As JobQueue.next."""
        return await self._job_store.next_queued(self._max_per_tenant)

    async def take(self, *, alone: bool) -> Row | None:
        """As JobQueue.take."""
        if self._fixed:
            return self._fixed.popleft()
        while (row := await self.next()) is not None:
            if row["worker_deaths"] and not alone:
                return None
            try:
                return await self._job_store.move(MoveJob(name=row["name"], move=Move.TAKE))
            except FailedPrecondition:
                continue  # cancelled in between
        return None

    async def release(self, attempt: Attempt) -> None:
        """The log knows it already."""

    async def close(self) -> None:
        """The log has everything."""
