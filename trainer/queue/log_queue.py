"""The log as the queue, for a trainer that is the only process on its store."""

from collections import deque

from rpc.errors import FailedPrecondition
from trainer.jobs.commands import MoveJob
from trainer.jobs.job_store import JobStore
from trainer.jobs.life_cycle import Move, State
from trainer.jobs.tables import Row
from trainer.worker.attempt import Attempt
from trainer.worker.completion import JobCompletion


class LogQueue:
    """A JobQueue whose entries are the QUEUED jobs of the log. It keeps no state that could be lost."""

    def __init__(
        self, job_store: JobStore, completion: JobCompletion, *, max_per_tenant: int, max_worker_deaths: int
    ) -> None:
        """At most `max_per_tenant` jobs of a tenant train together; a job fails after `max_worker_deaths` deaths."""
        self._job_store = job_store
        self._completion = completion
        self._max_per_tenant = max_per_tenant
        self._max_worker_deaths = max_worker_deaths
        self._fixed: deque[Row] = deque()

    async def open(self) -> None:
        """Records a worker death for each RUNNING job, since its server was killed: the job is QUEUED again, or FAILED
        after too many deaths."""
        self._fixed.extend(await self._job_store.in_state(State.PUBLISHING))
        for row in await self._job_store.in_state(State.RUNNING):
            await self._completion.worker_died(row, self._max_worker_deaths)
        self._job_store.events.wake()

    async def run(self) -> None:
        """Does nothing: every change of the log wakes the worker."""

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
                continue  # cancelled meanwhile
        return None

    async def release(self, attempt: Attempt) -> None:
        """Does nothing: the log already has the attempt's end."""

    async def close(self) -> None:
        """Does nothing: the log has the whole state."""
