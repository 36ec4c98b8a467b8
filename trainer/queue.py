"""Which job is trained next, where one process has the log for itself: the queue is the log."""

from rpc.errors import FailedPrecondition
from trainer.book import MoveJob, Row
from trainer.desk import Desk
from trainer.jobs import Move, State


class LogQueue:
    """What is QUEUED in the log waits; there is nothing else to lose. Lives on the server's event loop."""

    def __init__(self, desk: Desk, *, max_per_tenant: int, max_losses: int) -> None:
        """A tenant has at most `max_per_tenant` jobs trained at once; `max_losses` workers may die of a job."""
        self._desk = desk
        self._max_per_tenant = max_per_tenant
        self._max_losses = max_losses

    async def recover(self) -> list[tuple[Row, FailedPrecondition]]:
        """Queues the jobs again that an earlier server was killed with; gives those that too many were killed with, and
        the error to end them with."""
        given_up = []
        for row in await self._desk.in_state(State.RUNNING):
            if row["losses"] + 1 < self._max_losses:
                await self._desk.move(MoveJob(name=row["name"], move=Move.LOSE, attempt=row["attempt"]))
            else:
                given_up.append((row, workers_lost(row["name"], self._max_losses)))
        return given_up

    async def next(self) -> Row | None:
        """The job that would be taken."""
        return await self._desk.next_queued(self._max_per_tenant)

    async def take(self, *, alone: bool) -> Row | None:
        """The next job, RUNNING under a new attempt; None when nothing waits, or when the next one has lost a worker
        and the caller has other jobs, so that it would not be `alone`."""
        while (row := await self.next()) is not None:
            if row["losses"] and not alone:
                return None
            try:
                return await self._desk.move(MoveJob(name=row["name"], move=Move.TAKE))
            except FailedPrecondition:
                continue  # cancelled in between
        return None


def workers_lost(name: str, count: int) -> FailedPrecondition:
    """Why a job ends that `count` workers were lost with."""
    return FailedPrecondition(
        f"{count} workers have died while they trained this job", reason="WORKERS_LOST", metadata={"job": name}
    )
