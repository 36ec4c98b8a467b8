"""Where a worker gets its jobs: a boundary with two sides, the log itself or NATS JetStream."""

from typing import Protocol

from rpc.errors import FailedPrecondition
from trainer.jobs.tables import Row
from trainer.worker.attempt import Attempt


class JobQueue(Protocol):
    """Says which job a worker does next, and that no other one is at it for now. Whose a job is the log alone decides:
    it refuses the words of an attempt that is over. Lives on the worker's event loop."""

    async def open(self) -> None:
        """Before anything else: takes up what was left."""
        ...

    async def run(self) -> None:
        """Beside the worker until it is cancelled; the desk is woken whenever `take` may have something."""
        ...

    async def next(self) -> Row | None:
        """The job that waits for this worker to have a place, if there is one and the queue knows it."""
        ...

    async def take(self, *, alone: bool) -> Row | None:
        """A job that is RUNNING under a new attempt, or one that is PUBLISHING: fixed by an earlier attempt, and still
        to be brought to the registry.

        None when there is nothing, or when the next one has lost a worker and the caller has other jobs, so that it
        would not be `alone`. Does not wait for one to come.
        """
        ...

    async def release(self, attempt: Attempt) -> None:
        """Nothing more comes of an attempt of this worker's: it has ended, was handed back, or is another one's."""
        ...

    async def close(self) -> None:
        """After the last word about every attempt. What was not released is for others to take up, at once."""
        ...


def workers_lost(name: str, count: int) -> FailedPrecondition:
    """Why a job ends that `count` workers were lost with."""
    return FailedPrecondition(
        f"{count} workers have died while they trained this job", reason="WORKERS_LOST", metadata={"job": name}
    )
