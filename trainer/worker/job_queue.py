"""The queue that a worker takes its jobs from: an interface with two implementations, the log and NATS JetStream."""

from typing import Protocol

from trainer.jobs.tables import Row
from trainer.worker.attempt import Attempt


class JobQueue(Protocol):
    """Chooses the job that a worker takes next and keeps other workers off it for the time being. Only the log decides
    which attempt holds a job: it refuses commands of any other attempt. Lives on the worker's event loop."""

    async def open(self) -> None:
        """Called first: recovers jobs that an earlier worker left."""
        ...

    async def run(self) -> None:
        """Runs beside the worker until cancelled. Wakes the job store's events whenever `take` may have a job."""
        ...

    async def next(self) -> Row | None:
        """The job that waits for a place of this worker. None if no job waits, or the queue does not know of it."""
        ...

    async def take(self, *, alone: bool) -> Row | None:
        """A job that is RUNNING under a new attempt, or one that is PUBLISHING: an earlier attempt fixed its result,
        which still has to be published.

        None if there is no job, or if a worker has died of the next one and the caller holds other jobs, so that the
        job would not be `alone`. Does not block until a job arrives.
        """
        ...

    async def release(self, attempt: Attempt) -> None:
        """This worker is done with an attempt: it has ended, was handed back, or has lost its job to another
        attempt."""
        ...

    async def close(self) -> None:
        """Called after the last commit about every attempt. Other workers can take unreleased jobs immediately."""
        ...
