"""The end of an attempt: its result is fixed, then published; or the job fails, or is handed back."""

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

import structlog
from google.protobuf.json_format import MessageToDict
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1 import resources_pb2

from rpc.errors import Error, ErrorTable, FailedPrecondition, NotFound, error_text
from rpc.identity import from_json
from rpc.retry import retry_while_unavailable
from storage.objects.blobs import Blobs
from storage.tensors import write_tensors
from trainer.evaluation.measurement import Measurement
from trainer.jobs.commands import FixFirst, KeepFirst, MoveJob
from trainer.jobs.conversions import job_of
from trainer.jobs.job_store import JobStore
from trainer.jobs.life_cycle import Move, State
from trainer.jobs.tables import Row
from trainer.metrics import TrainerMetrics
from trainer.training.run import Learned, Run
from trainer.worker.attempt import Attempt
from trainer.worker.provenance import evaluation_of, version_of
from trainer.worker.publisher import Publisher

# Reasons of the state machine's refusal of an attempt that no longer holds its job.
_OVER = {"ATTEMPT_OVER", "JOB_STATE"}
_logger = structlog.get_logger(__name__)


class JobCompletion:
    """Commits the end of attempts. Lives on the server's event loop. All methods retry while the store is
    unavailable."""

    def __init__(
        self, job_store: JobStore, blobs: Blobs, publisher: Publisher, metrics: TrainerMetrics, table: ErrorTable
    ) -> None:
        """`table` maps a job's exception to the error that is stored with the job."""
        self._job_store = job_store
        self._blobs = blobs
        self._publisher = publisher
        self._metrics = metrics
        self._table = table

    async def fix_result(self, attempt: Attempt, run: Run, training_time: timedelta) -> Row:
        """Fixes the learned vectors as the job's final result. Raises FailedPrecondition if another attempt holds the
        job, or it is not RUNNING."""
        embedding, record = await self._write_result(attempt, run, run.learned(), training_time)
        return await self._fix(attempt, embedding=embedding, record=record)

    async def fix_figures(self, attempt: Attempt, measurement: Measurement) -> Row:
        """Fixes the figures as the job's final result. Raises as `fix_result`."""
        return await self._fix(attempt, record=await self._put(attempt, evaluation_of(attempt.job, measurement)))

    async def _fix(self, attempt: Attempt, **detail: Any) -> Row:
        progress = self._job_store.events.progress(attempt.job.name)
        if progress is not None:
            detail["progress"] = MessageToDict(progress, preserving_proto_field_name=True)
        return await self._job_store.move(attempt.move(Move.FIX, **detail))

    async def publish_initial(self, attempt: Attempt, run: Run) -> None:
        """Publishes the vectors as they are before the first step, unless an earlier attempt has done so. Training
        continues meanwhile; the job fails if the registry refuses the version."""
        name, row = attempt.name, attempt.row
        try:
            if "first_record" not in row["detail"]:
                embedding, record = await self._write_result(attempt, run, run.initial(), timedelta(0))
                fixed = FixFirst(name=name, attempt=attempt.number, embedding=embedding, record=record)
                row = await self._job_store.commit_own(fixed, attempt.tenant)
            await self._publish_first_version(row)
        except Exception as error:
            if isinstance(error, FailedPrecondition) and error.reason in _OVER:
                return
            await self.fail(name, attempt.number, error)

    async def publish(self, row: Row) -> None:
        """Publishes a fixed result, and before it the initial version if there is one. Retries while the registry is
        unavailable."""
        name, attempt = row["name"], row["attempt"]
        try:
            await self._publish_first_version(row)
            job = job_of(row, row["revision"])
            if job.evaluates:
                detail = {"evaluation": (await self._publish_evaluation(row, job)).name}
            else:
                detail = {"version": (await self._publish_version(row)).name}
            move = MoveJob(name=name, move=Move.FINISH, attempt=attempt, detail=detail)
        except Exception as error:
            await self.fail(name, attempt, error)
        else:
            await self.record(move, "published")

    async def _publish_first_version(self, row: Row) -> None:
        """Does nothing if no initial version was fixed, or if the log says that it is published."""
        detail = row["detail"]
        if "first_record" in detail and "first_version" not in detail:
            version = await self._publish_version(row, "first_")
            await self._job_store.commit_own(KeepFirst(name=row["name"], version=version.name), row["tenant"])

    async def _publish_evaluation(self, row: Row, job: resources_pb2.Job) -> registry_resources.Evaluation:
        record = await retry_while_unavailable(lambda: asyncio.to_thread(self._blobs.get, row["detail"]["record"]))
        return await self._publisher.evaluate(job, record, from_json(row["principal"]))

    async def _publish_version(self, row: Row, which: str = "") -> registry_resources.Version:
        detail = row["detail"]
        record = await retry_while_unavailable(lambda: asyncio.to_thread(self._blobs.get, detail[f"{which}record"]))
        file = await retry_while_unavailable(lambda: asyncio.to_thread(self._blobs.get, detail[f"{which}embedding"]))
        job = job_of(row, row["revision"])
        return await self._publisher.publish(job, record, file, from_json(row["principal"]), first=bool(which))

    async def _write_result(
        self, attempt: Attempt, run: Run, learned: Learned, training_time: timedelta
    ) -> tuple[str, str]:
        """Writes a result's embedding and record as blobs and returns their names."""
        job = attempt.job
        file = write_tensors({encoder.name: learned.vectors for encoder in job.base_model.encoders})
        record = version_of(job, run.task.recipe, learned, training_time)
        embedding = await retry_while_unavailable(lambda: asyncio.to_thread(self._blobs.put, attempt.tenant, file))
        return embedding.name, await self._put(attempt, record)

    async def _put(self, attempt: Attempt, record: registry_resources.Version | registry_resources.Evaluation) -> str:
        """Writes a record as a blob and returns its name."""
        data = record.SerializeToString(deterministic=True)
        blob = await retry_while_unavailable(lambda: asyncio.to_thread(self._blobs.put, attempt.tenant, data))
        return blob.name

    async def fail(self, name: str, attempt: int, error: Exception) -> None:
        """Fails a job, unless `attempt` no longer holds it."""
        failure = self._table.translate(error)
        if failure.reason in _OVER:
            self._record_over(name, attempt, failure)
            return
        if isinstance(failure, NotFound):  # a picture was deleted meanwhile: a failed precondition of the job
            failure = FailedPrecondition(failure.message, reason=failure.reason, metadata=failure.metadata)
        _logger.warning("job failed", job=name, attempt=attempt, reason=failure.reason, error=failure.message)
        detail = {"error": error_text(failure)}
        await self.record(MoveJob(name=name, move=Move.FAIL, attempt=attempt, detail=detail), "failed")

    async def worker_died(self, row: Row, most: int) -> None:
        """Records the death of the worker that trained a RUNNING job: the job is queued again, or fails after `most`
        deaths."""
        name, attempt = row["name"], row["attempt"]
        if row["worker_deaths"] + 1 >= most:
            await self.fail(name, attempt, _too_many_worker_deaths(name, most))
            return
        _logger.warning("worker died", job=name, attempt=attempt)
        with suppress(FailedPrecondition):  # the job has ended meanwhile
            await self._job_store.move(MoveJob(name=name, move=Move.WORKER_DIED, attempt=attempt))

    async def record(self, move: MoveJob, how: str) -> bool:
        """Commits an attempt's last move. Returns False if the job was cancelled, or lost to another attempt,
        meanwhile."""
        try:
            await self._job_store.move(move)
        except FailedPrecondition as error:
            self._record_over(move.name, move.attempt, error)
            return False
        self._metrics.ended.labels(how).inc()
        return True

    def _record_over(self, name: str, attempt: int | None, error: Error) -> None:
        _logger.info("attempt is over", job=name, attempt=attempt, why=error.message)
        cancelled = error.metadata.get("state") == State.CANCELLED
        self._metrics.ended.labels("cancelled" if cancelled else "lost").inc()


def _too_many_worker_deaths(name: str, count: int) -> FailedPrecondition:
    """The error of a job that fails because `count` workers have died of it."""
    return FailedPrecondition(
        f"{count} workers have died while they trained this job: look for the cause in their logs before a retry",
        reason="WORKERS_LOST",
        metadata={"job": name},
    )
