"""How attempts end: what was learned or measured is fixed, then published; or the job has failed, or is handed back."""

import asyncio
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

# What the book refuses with when a job is no longer the attempt's.
_OVER = {"ATTEMPT_OVER", "JOB_STATE"}
_logger = structlog.get_logger(__name__)


class JobCompletion:
    """The last words about attempts. Lives on the server's event loop; while the store is away all of it waits."""

    def __init__(
        self, job_store: JobStore, blobs: Blobs, publisher: Publisher, metrics: TrainerMetrics, table: ErrorTable
    ) -> None:
        """`table` says what a job's error becomes."""
        self._job_store = job_store
        self._blobs = blobs
        self._publisher = publisher
        self._metrics = metrics
        self._table = table

    async def fix_result(self, attempt: Attempt, run: Run, training_time: timedelta) -> Row:
        """From here on these vectors are the job's for ever. Raises FailedPrecondition when the job is not ours."""
        embedding, about = await self._written(attempt, run, run.learned(), training_time)
        return await self._fix(attempt, embedding=embedding, record=about)

    async def fix_figures(self, attempt: Attempt, measurement: Measurement) -> Row:
        """From here on these figures are the job's for ever. Raises as `fix_result`."""
        return await self._fix(attempt, record=await self._put(attempt, evaluation_of(attempt.job, measurement)))

    async def _fix(self, attempt: Attempt, **detail: Any) -> Row:
        progress = self._job_store.events.progress(attempt.job.name)
        if progress is not None:
            detail["progress"] = MessageToDict(progress, preserving_proto_field_name=True)
        return await self._job_store.move(attempt.move(Move.FIX, **detail))

    async def publish_initial(self, attempt: Attempt, run: Run) -> None:
        """Publishes the vectors as they are before the first step, unless an earlier attempt has; the job goes on
        meanwhile, and fails where the registry refuses them."""
        name, row = attempt.name, attempt.row
        try:
            if "first_record" not in row["detail"]:
                embedding, about = await self._written(attempt, run, run.initial(), timedelta(0))
                fixed = FixFirst(name=name, attempt=attempt.number, embedding=embedding, record=about)
                row = await self._job_store.commit_own(fixed, attempt.tenant)
            await self._publish_first(row)
        except Exception as error:
            if isinstance(error, FailedPrecondition) and error.reason in _OVER:
                return
            await self.fail(name, attempt.number, error)

    async def publish(self, row: Row) -> None:
        """Brings what was fixed to the registry, however long that is away; what was fixed at first before it."""
        name, attempt = row["name"], row["attempt"]
        try:
            await self._publish_first(row)
            job = job_of(row, row["revision"])
            if job.evaluates:
                detail = {"evaluation": (await self._evaluated(row, job)).name}
            else:
                detail = {"version": (await self._published(row)).name}
            move = MoveJob(name=name, move=Move.FINISH, attempt=attempt, detail=detail)
        except Exception as error:
            await self.fail(name, attempt, error)
        else:
            await self.record(move, "published")

    async def _publish_first(self, row: Row) -> None:
        """Does nothing where nothing was fixed at first, or the registry is known to have it."""
        detail = row["detail"]
        if "first_record" in detail and "first_version" not in detail:
            version = await self._published(row, "first_")
            await self._job_store.commit_own(KeepFirst(name=row["name"], version=version.name), row["tenant"])

    async def _evaluated(self, row: Row, job: resources_pb2.Job) -> registry_resources.Evaluation:
        about = await retry_while_unavailable(lambda: asyncio.to_thread(self._blobs.get, row["detail"]["record"]))
        return await self._publisher.evaluate(job, about, from_json(row["principal"]))

    async def _published(self, row: Row, which: str = "") -> registry_resources.Version:
        detail = row["detail"]
        about = await retry_while_unavailable(lambda: asyncio.to_thread(self._blobs.get, detail[f"{which}record"]))
        file = await retry_while_unavailable(lambda: asyncio.to_thread(self._blobs.get, detail[f"{which}embedding"]))
        job = job_of(row, row["revision"])
        return await self._publisher.publish(job, about, file, from_json(row["principal"]), first=bool(which))

    async def _written(self, attempt: Attempt, run: Run, learned: Learned, training_time: timedelta) -> tuple[str, str]:
        """The blobs of the embedding and of what is written down about it."""
        job = attempt.job
        file = write_tensors({encoder.name: learned.vectors for encoder in job.base_model.encoders})
        about = version_of(job, run.task.recipe, learned, training_time)
        embedding = await retry_while_unavailable(lambda: asyncio.to_thread(self._blobs.put, attempt.tenant, file))
        return embedding.name, await self._put(attempt, about)

    async def _put(self, attempt: Attempt, about: registry_resources.Version | registry_resources.Evaluation) -> str:
        """The name of a blob of what is written down."""
        data = about.SerializeToString(deterministic=True)
        blob = await retry_while_unavailable(lambda: asyncio.to_thread(self._blobs.put, attempt.tenant, data))
        return blob.name

    async def fail(self, name: str, attempt: int, error: Exception) -> None:
        """The job has failed, unless it is not the attempt's any more."""
        failure = self._table.translate(error)
        if failure.reason in _OVER:
            self._over(name, attempt, failure)
            return
        if isinstance(failure, NotFound):  # a picture that went since; what the job needs is its state, not a request
            failure = FailedPrecondition(failure.message, reason=failure.reason, metadata=failure.metadata)
        _logger.warning("job failed", job=name, attempt=attempt, reason=failure.reason, error=failure.message)
        detail = {"error": error_text(failure)}
        await self.record(MoveJob(name=name, move=Move.FAIL, attempt=attempt, detail=detail), "failed")

    async def record(self, move: MoveJob, how: str) -> bool:
        """A last word about an attempt, which nobody hears (False) if the job was cancelled, or lost, meanwhile."""
        try:
            await self._job_store.move(move)
        except FailedPrecondition as error:
            self._over(move.name, move.attempt, error)
            return False
        self._metrics.ended.labels(how).inc()
        return True

    def _over(self, name: str, attempt: int | None, error: Error) -> None:
        _logger.info("attempt is over", job=name, attempt=attempt, why=error.message)
        cancelled = error.metadata.get("state") == State.CANCELLED
        self._metrics.ended.labels("cancelled" if cancelled else "lost").inc()
