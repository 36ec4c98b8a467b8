"""How attempts end: what was learned is fixed, then published; or the job has failed, or is handed back."""

import asyncio
from datetime import timedelta
from typing import Any

import structlog
from google.protobuf.json_format import MessageToDict

from rpc.errors import ErrorTable, FailedPrecondition, NotFound, to_status
from rpc.identity import from_json
from rpc.patience import patiently
from storage.blobs import Blobs
from storage.tensors import write_tensors
from trainer.attempt import Attempt
from trainer.book import MoveJob, Row
from trainer.desk import Desk
from trainer.jobs import Move
from trainer.messages import error_text, job_of
from trainer.metrics import TrainerMetrics
from trainer.publisher import Publisher
from trainer.record import record
from trainer.run import Run

# What the book refuses with when a job is no longer the attempt's.
_OVER = {"ATTEMPT_OVER", "JOB_STATE"}
_logger = structlog.get_logger(__name__)


class Endings:
    """The last words about attempts. Lives on the server's event loop; while the store is away all of it waits."""

    def __init__(
        self, desk: Desk, blobs: Blobs, publisher: Publisher, metrics: TrainerMetrics, table: ErrorTable
    ) -> None:
        """`table` says what a job's error becomes."""
        self._desk = desk
        self._blobs = blobs
        self._publisher = publisher
        self._metrics = metrics
        self._table = table

    async def fix(self, attempt: Attempt, run: Run, training_time: timedelta) -> Row:
        """From here on these vectors are the job's for ever. Raises FailedPrecondition when the job is not ours."""
        job, learned = attempt.job, run.learned()
        file = write_tensors({encoder.name: learned.vectors for encoder in job.base_model.encoders})
        about = record(job, run.task.recipe, learned, training_time).SerializeToString(deterministic=True)
        embedding = await patiently(lambda: asyncio.to_thread(self._blobs.put, attempt.tenant, file))
        noted = await patiently(lambda: asyncio.to_thread(self._blobs.put, attempt.tenant, about))
        detail: dict[str, Any] = {"embedding": embedding.name, "record": noted.name}
        progress = self._desk.progress(job.name)
        if progress is not None:
            detail["progress"] = MessageToDict(progress, preserving_proto_field_name=True)
        return await self._desk.move(attempt.move(Move.FIX, **detail))

    async def publish(self, row: Row) -> None:
        """Brings what was fixed to the registry, however long that is away."""
        name, attempt = row["name"], row["attempt"]
        try:
            about = await patiently(lambda: asyncio.to_thread(self._blobs.get, row["detail"]["record"]))
            file = await patiently(lambda: asyncio.to_thread(self._blobs.get, row["detail"]["embedding"]))
            job = job_of(row, row["revision"])
            version = await self._publisher.publish(job, about, file, from_json(row["principal"]))
            move = MoveJob(name=name, move=Move.FINISH, attempt=attempt, detail={"version": version.name})
        except Exception as error:
            await self.fail(name, attempt, error)
        else:
            await self.say(move, "published")

    async def fail(self, name: str, attempt: int, error: Exception) -> None:
        """The job has failed, unless it is not the attempt's any more."""
        failure = self._table.translate(error)
        if failure.reason in _OVER:
            _logger.info("attempt is over", job=name, attempt=attempt, why=failure.message)
            self._metrics.ended.labels("cancelled").inc()
            return
        if isinstance(failure, NotFound):  # a picture that went since; what the job needs is its state, not a request
            failure = FailedPrecondition(failure.message, reason=failure.reason, metadata=failure.metadata)
        _logger.warning("job failed", job=name, attempt=attempt, reason=failure.reason, error=failure.message)
        detail = {"error": error_text(to_status(failure))}
        await self.say(MoveJob(name=name, move=Move.FAIL, attempt=attempt, detail=detail), "failed")

    async def say(self, move: MoveJob, how: str) -> bool:
        """A last word about an attempt, which nobody hears (False) if the job was cancelled meanwhile."""
        try:
            await self._desk.move(move)
        except FailedPrecondition as error:
            _logger.info("attempt is over", job=move.name, attempt=move.attempt, why=error.message)
            self._metrics.ended.labels("cancelled").inc()
            return False
        self._metrics.ended.labels(how).inc()
        return True
