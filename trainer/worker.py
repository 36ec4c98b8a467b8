"""The worker: takes jobs from the log, has the engine learn, fixes what was learned, and sees to its publishing.

The queue is the log itself: what is QUEUED there waits, whoever was killed in between.
"""

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from google.protobuf.json_format import MessageToDict
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1 import resources_pb2

from rpc.errors import ErrorTable, FailedPrecondition, NotFound, to_status
from rpc.identity import from_json
from rpc.patience import patiently
from rpc.validate import Violations
from storage.blobs import Blobs
from storage.tensors import write_tensors
from trainer.book import MoveJob, Row
from trainer.checks import templates
from trainer.desk import Desk
from trainer.engine import Engine, Learned, Step, Stopped, Task
from trainer.jobs import Move, State
from trainer.messages import error_text, job_of
from trainer.metrics import TrainerMetrics
from trainer.pictures import Pictures
from trainer.publisher import Publisher
from trainer.recipe import Recipe, fill_in
from trainer.record import record

# What the book refuses with when a job is no longer the attempt's.
_OVER = {"ATTEMPT_OVER", "JOB_STATE"}
_logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """The attempt that this worker holds. `stop` is set to end it at the next step."""

    job: resources_pb2.Job
    tenant: str
    number: int
    stop: threading.Event

    def move(self, move: Move, **detail: object) -> MoveJob:
        return MoveJob(name=self.job.name, move=move, attempt=self.number, detail=detail)


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What an attempt came to."""

    learned: Learned
    recipe: Recipe
    training_time: timedelta


class Worker:
    """One server's worker: one job is trained at a time, by the one thread that owns the model; finished ones are
    published beside it. Lives on the server's event loop."""

    def __init__(
        self,
        desk: Desk,
        pictures: Pictures,
        blobs: Blobs,
        engine: Engine,
        publisher: Publisher,
        metrics: TrainerMetrics,
        table: ErrorTable,
        *,
        base_model: registry_resources.BaseModel,
        max_losses: int,
    ) -> None:
        """`max_losses` workers may die of a job; then it is FAILED. `table` says what a job's error becomes."""
        self._desk = desk
        self._pictures = pictures
        self._blobs = blobs
        self._engine = engine
        self._publisher = publisher
        self._metrics = metrics
        self._table = table
        self._base_model = base_model
        self._max_losses = max_losses
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="train")
        self._attempt: _Attempt | None = None
        self._publishing: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._crash: BaseException | None = None

    async def start(self) -> None:
        """Takes up what an earlier server left, then works until stop()."""
        await patiently(self._desk.count)
        for row in await self._desk.in_state(State.RUNNING):
            await self._lose(row)
        for row in await self._desk.in_state(State.PUBLISHING):
            self._publish_beside(row)
        self._loop = self._begin(self._run())

    async def stop(self) -> None:
        """Hands the job that is trained back and lets go of what is published; the log has both. Ends within a step.

        Raises what the worker has died of, if it has.
        """
        self._stopping.set()
        self._desk.wake()
        if self._attempt is not None:
            self._attempt.stop.set()
        try:
            if self._loop is not None:
                await asyncio.shield(self._loop)
            for task in self._publishing:
                task.cancel()
            if self._publishing:
                await asyncio.wait(self._publishing)
        except asyncio.CancelledError:  # no time left
            if self._loop is not None:
                self._loop.cancel()
            raise
        finally:
            self._thread.shutdown(wait=False)
        if self._crash is not None:
            raise self._crash

    def cancelled(self, name: str) -> None:
        """A job was cancelled: if it is the one that is trained, that ends at its next step."""
        if self._attempt is not None and self._attempt.job.name == name:
            self._attempt.stop.set()

    async def _run(self) -> None:
        while (attempt := await self._take()) is not None:
            self._attempt = attempt
            try:
                outcome = await self._train(attempt)
                row = await self._fix(attempt, outcome)
                self._publish_beside(row)
            except Stopped:
                await self._try(attempt.move(Move.HAND_BACK), "handed_back")
            except Exception as error:
                await self._fail(attempt.job.name, attempt.number, error)
            finally:
                self._attempt = None
                self._desk.forget(attempt.job.name)

    async def _take(self) -> _Attempt | None:
        """The next job's new attempt; waits for one. None when the worker stops."""
        while not self._stopping.is_set():
            row = await self._desk.first_queued()
            if row is None:
                await self._desk.work()
                continue
            try:
                row = await self._desk.move(MoveJob(name=row["name"], move=Move.TAKE))
            except FailedPrecondition:
                continue  # cancelled in between
            return _Attempt(
                job=job_of(row, row["revision"]), tenant=row["tenant"], number=row["attempt"], stop=threading.Event()
            )
        return None

    async def _train(self, attempt: _Attempt) -> _Outcome:
        """Raises Stopped, and whatever makes the job impossible."""
        job = attempt.job
        row, _ = await self._desk.row(job.name, cached=True)
        if self._stopping.is_set() or row["state"] != State.RUNNING:  # cancelled before it was known to be ours
            raise Stopped
        if job.base_model != self._base_model:
            raise FailedPrecondition(
                f"the job was made for the base model {job.base_model.checkpoint}, and the trainer has"
                f" {self._base_model.checkpoint} now: create it again",
                reason="BASE_MODEL_CHANGED",
            )
        recipe = fill_in(job.recipe, job.kind, self._base_model.family, Violations())
        task = Task(
            pictures=[await self._pictures.read(example.picture) for example in job.examples],
            templates=templates(job, self._engine),
            start=job.start.words,
            vectors=job.vectors,
            seed=job.seed,
            recipe=recipe,
        )
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        tell = self._teller(job.name, recipe.steps, began)

        def on_step(step: Step) -> None:
            loop.call_soon_threadsafe(tell, step, time.monotonic())

        learned = await loop.run_in_executor(
            self._thread,
            self._engine.learn,
            task,
            on_step,
            attempt.stop,
        )
        seconds = time.monotonic() - began
        self._metrics.training.observe(seconds)
        return _Outcome(learned=learned, recipe=recipe, training_time=timedelta(seconds=seconds))

    def _teller(self, name: str, steps: int, began: float) -> Callable[[Step, float], None]:
        before = began

        def tell(step: Step, now: float) -> None:
            nonlocal before
            self._metrics.steps.observe(now - before)
            before = now
            progress = resources_pb2.Progress(
                step=step.step,
                steps=steps,
                loss=step.loss,
                smoothed_loss=step.smoothed_loss,
                learning_rate=step.learning_rate,
            )
            elapsed = timedelta(seconds=now - began)
            progress.elapsed.FromTimedelta(elapsed)
            progress.remaining.FromTimedelta(elapsed * (steps - step.step) / step.step)
            self._desk.tell(name, progress)

        return tell

    async def _fix(self, attempt: _Attempt, outcome: _Outcome) -> Row:
        """From here on these vectors are the job's for ever. Raises FailedPrecondition when the job is not ours."""
        job, tenant = attempt.job, attempt.tenant
        file = write_tensors({encoder.name: outcome.learned.vectors for encoder in job.base_model.encoders})
        about = record(job, outcome.recipe, outcome.learned, outcome.training_time).SerializeToString(
            deterministic=True
        )
        embedding = await patiently(lambda: asyncio.to_thread(self._blobs.put, tenant, file))
        noted = await patiently(lambda: asyncio.to_thread(self._blobs.put, tenant, about))
        detail: dict[str, Any] = {"embedding": embedding.name, "record": noted.name}
        progress = self._desk.progress(job.name)
        if progress is not None:
            detail["progress"] = MessageToDict(progress, preserving_proto_field_name=True)
        return await self._desk.move(attempt.move(Move.FIX, **detail))

    def _publish_beside(self, row: Row) -> None:
        task = self._begin(self._publish(row))
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task whose death ends the server: whoever restarts it finds everything in the log."""
        task = asyncio.create_task(work)

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                _logger.critical("the worker has died", exc_info=error)
                self._crash = error
                signal.raise_signal(signal.SIGTERM)

        task.add_done_callback(ended)
        return task

    async def _publish(self, row: Row) -> None:
        """Brings what was fixed to the registry, however long that is away."""
        name, attempt = row["name"], row["attempt"]
        try:
            about = await patiently(lambda: asyncio.to_thread(self._blobs.get, row["detail"]["record"]))
            file = await patiently(lambda: asyncio.to_thread(self._blobs.get, row["detail"]["embedding"]))
            job = job_of(row, row["revision"])
            version = await self._publisher.publish(job, about, file, from_json(row["principal"]))
            move = MoveJob(name=name, move=Move.FINISH, attempt=attempt, detail={"version": version.name})
        except Exception as error:
            await self._fail(name, attempt, error)
        else:
            await self._try(move, "published")

    async def _lose(self, row: Row) -> None:
        """An earlier server was killed while it trained this job."""
        if row["losses"] + 1 < self._max_losses:
            await self._desk.move(MoveJob(name=row["name"], move=Move.LOSE, attempt=row["attempt"]))
            return
        error = FailedPrecondition(
            f"{self._max_losses} workers have died while they trained this job",
            reason="WORKERS_LOST",
            metadata={"job": row["name"]},
        )
        await self._fail(row["name"], row["attempt"], error)

    async def _fail(self, name: str, attempt: int, error: Exception) -> None:
        failure = self._table.translate(error)
        if failure.reason in _OVER:
            _logger.info("attempt is over", job=name, attempt=attempt, why=failure.message)
            self._metrics.ended.labels("cancelled").inc()
            return
        if isinstance(failure, NotFound):  # a picture that went since; what the job needs is its state, not a request
            failure = FailedPrecondition(failure.message, reason=failure.reason, metadata=failure.metadata)
        _logger.warning("job failed", job=name, attempt=attempt, reason=failure.reason, error=failure.message)
        detail = {"error": error_text(to_status(failure))}
        await self._try(MoveJob(name=name, move=Move.FAIL, attempt=attempt, detail=detail), "failed")

    async def _try(self, move: MoveJob, how: str) -> None:
        """A last word about an attempt, which nobody hears if the job was cancelled meanwhile."""
        try:
            await self._desk.move(move)
        except FailedPrecondition as error:
            _logger.info("attempt is over", job=move.name, attempt=move.attempt, why=error.message)
            how = "cancelled"
        self._metrics.ended.labels(how).inc()
