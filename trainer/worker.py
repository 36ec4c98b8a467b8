"""The worker: takes jobs from the queue, has the engine train them together, fixes what was learned, and sees to its
publishing.
"""

import asyncio
import signal
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import structlog
from google.protobuf.json_format import MessageToDict
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1 import resources_pb2

from rpc.errors import ErrorTable, FailedPrecondition, NotFound, to_status
from rpc.identity import Principal, from_json
from rpc.patience import patiently
from rpc.validate import Violations
from storage.blobs import Blobs
from storage.tensors import write_tensors
from trainer.book import KeepCheckpoint, MoveJob, Row
from trainer.checkpoints import Checkpoints
from trainer.checks import templates
from trainer.desk import Desk
from trainer.engine import Engine, Ticked
from trainer.jobs import Move, State
from trainer.messages import error_text, job_of
from trainer.metrics import TrainerMetrics
from trainer.pace import Pace
from trainer.pictures import Pictures
from trainer.publisher import Publisher
from trainer.queue import LogQueue
from trainer.recipe import fill_in
from trainer.record import record
from trainer.run import Run, RunState, Step, Task
from trainer.starts import BestWord, Given, Start, Words
from trainer.templates import STARTS
from trainer.turns import Entry, Turns
from trainer.versions import Versions

# What the book refuses with when a job is no longer the attempt's.
_OVER = {"ATTEMPT_OVER", "JOB_STATE"}
_logger = structlog.get_logger(__name__)


@dataclass(kw_only=True)
class _Attempt:
    """A job that this worker holds. `run` is absent until its pictures are encoded; `over` once nothing more is to come
    of it."""

    job: resources_pb2.Job
    tenant: str
    number: int
    losses: int
    created_us: int
    began: float = field(default_factory=time.monotonic)  # training, and its last step
    stepped: float = 0.0
    # Blob that the log has as the job's checkpoint, when it was made, and whether another one is on its way.
    checkpoint: str = ""
    saved: float = 0.0
    saving: asyncio.Task[None] | None = None
    # Steps and seconds of earlier attempts that this one went on from.
    first_step: int = 0
    trained_s: float = 0.0
    run: Run | None = None
    over: bool = False

    def trained(self, now: float) -> timedelta:
        """Wall time of the training until `now`, earlier attempts' included."""
        return timedelta(seconds=self.trained_s + now - self.began)

    def move(self, move: Move, **detail: object) -> MoveJob:
        return MoveJob(name=self.job.name, move=move, attempt=self.number, detail=detail)


class Worker:
    """One device's worker: several jobs are trained at once, by the one thread that owns the model; finished ones are
    published beside it. Lives on the server's event loop."""

    def __init__(
        self,
        desk: Desk,
        queue: LogQueue,
        pictures: Pictures,
        blobs: Blobs,
        checkpoints: Checkpoints,
        engine: Engine,
        publisher: Publisher,
        versions: Versions,
        metrics: TrainerMetrics,
        table: ErrorTable,
        *,
        base_model: registry_resources.BaseModel,
        max_running: int,
        quantum_rows: int,
        checkpoint_every: timedelta,
    ) -> None:
        """At most `max_running` jobs are held at once; a tenant has `quantum_rows` rows before the next one's turn.
        `table` says what a job's error becomes."""
        self._desk = desk
        self._queue = queue
        self._pictures = pictures
        self._blobs = blobs
        self._checkpoints = checkpoints
        self._engine = engine
        self._publisher = publisher
        self._versions = versions
        self._metrics = metrics
        self._table = table
        self._base_model = base_model
        self._max_running = max_running
        self._checkpoint_s = checkpoint_every.total_seconds()
        self._turns = Turns(quantum_rows=quantum_rows)
        self._pace = Pace()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="train")
        self._attempts: dict[str, _Attempt] = {}
        # What goes on beside the ticks: preparing and publishing, which the next server takes up where they stop, and
        # the last words about an attempt, which are waited for.
        self._beside: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._crash: BaseException | None = None

    async def start(self) -> None:
        """Takes up what an earlier server left, then works until stop()."""
        await patiently(self._desk.count)
        for row, error in await self._queue.recover():
            await self._fail(row["name"], row["attempt"], error)
        for row in await self._desk.in_state(State.PUBLISHING):
            self._start(self._publish(row), self._beside)
        self._loop = self._begin(self._run())

    async def stop(self) -> None:
        """Hands the jobs that are trained back and lets go of what is published; the log has both. Ends within a tick.

        Raises what the worker has died of, if it has.
        """
        self._stopping.set()
        self._desk.wake()
        try:
            if self._loop is not None:
                await asyncio.shield(self._loop)
            while self._ending:
                await asyncio.wait(self._ending)
            for task in self._beside:
                task.cancel()
            if self._beside:
                await asyncio.wait(self._beside)
            for attempt in list(self._attempts.values()):
                self._let_go(attempt)
                await self._hand_back(attempt)
        except asyncio.CancelledError:  # no time left
            if self._loop is not None:
                self._loop.cancel()
            raise
        finally:
            self._thread.shutdown(wait=False)
        if self._crash is not None:
            raise self._crash

    def cancelled(self, name: str) -> None:
        """A job was cancelled: if it is trained here, that ends with the tick."""
        attempt = self._attempts.get(name)
        if attempt is not None:
            self._drop(attempt)

    async def _run(self) -> None:
        while not self._stopping.is_set():
            if self._desk.stirred():
                await self._take()
            ready = {name: attempt for name, attempt in self._attempts.items() if attempt.run is not None}
            if ready:
                await self._tick(ready)
            elif not self._stopping.is_set():
                await self._desk.work()

    async def _take(self) -> None:
        """Takes jobs for as long as there are some, and places for them.

        A job that a worker was lost with is trained alone: if it is what kills them, it takes no other with it again.
        """
        while len(self._attempts) < self._max_running and not self._stopping.is_set():
            if any(attempt.losses for attempt in self._attempts.values()):
                return
            row = await self._queue.take(alone=not self._attempts)
            if row is None:
                return
            attempt = _Attempt(
                job=job_of(row, row["revision"]),
                tenant=row["tenant"],
                number=row["attempt"],
                losses=row["losses"],
                created_us=row["created_us"],
                checkpoint=row["detail"].get("checkpoint", ""),
            )
            self._attempts[attempt.job.name] = attempt
            self._start(self._prepare(attempt), self._beside)

    async def _prepare(self, attempt: _Attempt) -> None:
        """Makes an attempt ready to be trained."""
        try:
            run = await self._run_of(attempt)
        except Exception as error:
            self._give_up(attempt, error)
            return
        if run is not None and not attempt.over:
            attempt.run = run
            attempt.began = attempt.stepped = attempt.saved = time.monotonic()
            attempt.first_step = run.step
            entry = Entry(tenant=attempt.tenant, priority=attempt.job.priority, order=attempt.created_us)
            self._turns.join(attempt.job.name, entry)
        self._desk.wake()

    async def _run_of(self, attempt: _Attempt) -> Run | None:
        """None for one that was cancelled before it was known to be ours. Raises whatever makes the job impossible."""
        job = attempt.job
        row, _ = await self._desk.row(job.name, cached=True)
        if row["state"] != State.RUNNING:
            self._drop(attempt)
            return None
        if job.base_model != self._base_model:
            raise FailedPrecondition(
                f"the job was made for the base model {job.base_model.checkpoint}, and the trainer has"
                f" {self._base_model.checkpoint} now: create it again",
                reason="BASE_MODEL_CHANGED",
            )
        state = await self._checkpoints.read(attempt.checkpoint)
        task = Task(
            pictures=[await self._pictures.read(example.picture) for example in job.examples],
            masks=[await self._pictures.read(example.mask) if example.mask else None for example in job.examples],
            templates=templates(job, self._engine),
            start=await self._start_of(job, from_json(row["principal"])),
            vectors=job.vectors,
            seed=job.seed,
            recipe=fill_in(job.recipe, job.kind, self._base_model.family, Violations()),
        )
        if state is not None:
            attempt.trained_s = state.trained_s
            _logger.info("goes on from a checkpoint", job=job.name, attempt=attempt.number, step=len(state.losses))
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.prepare, task, state)

    async def _start_of(self, job: resources_pb2.Job, principal: Principal) -> Start:
        match job.start.WhichOneof("start"):
            case "version":
                return Given(vectors=await self._versions.vectors(job.start.version, principal))
            case "best_of_vocabulary":
                return BestWord(usual=self._engine.starts.first_of(STARTS[job.recipe.name]))
            case "encoded_words":
                return Words(words=job.start.encoded_words, encoded=True)
        return Words(words=job.start.words)

    async def _tick(self, ready: dict[str, _Attempt]) -> None:
        """Trains the next rows."""
        limit = self._engine.max_rows
        wanted = {name: min(attempt.run.rows_left, limit) for name, attempt in ready.items() if attempt.run is not None}
        granted = self._turns.grant(wanted, self._pace.useful_rows(limit))
        attempts = [ready[name] for name in granted]
        grants = [(attempt.run, granted[attempt.job.name]) for attempt in attempts if attempt.run is not None]
        began = time.monotonic()
        ticked = await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.tick, grants)
        now = time.monotonic()
        if ticked:
            rows = sum(granted.values())
            self._pace.measured(rows, now - began)
            self._metrics.ticks.observe(now - began)
            self._metrics.rows.inc(rows)
        by_run = {id(one.run): one for one in ticked}
        for attempt in attempts:
            if not attempt.over and (one := by_run.get(id(attempt.run))) is not None:
                self._heed(attempt, one, now)

    def _heed(self, attempt: _Attempt, ticked: Ticked, now: float) -> None:
        """What a tick came to for one attempt."""
        if ticked.error is not None:
            self._give_up(attempt, ticked.error)
        elif ticked.step is not None:
            self._tell(attempt, ticked.step, now)
            if ticked.run.done:
                self._let_go(attempt)
                self._start(self._finish(attempt, ticked.run, attempt.trained(now)), self._ending)
            elif now - attempt.saved >= self._checkpoint_s and (attempt.saving is None or attempt.saving.done()):
                state = ticked.run.state(attempt.trained(now).total_seconds())
                attempt.saved, attempt.saving = now, self._start(self._save(attempt, state), self._ending)

    async def _save(self, attempt: _Attempt, state: RunState) -> None:
        """Keeps a checkpoint, if the attempt still holds its job then."""
        blob = await self._checkpoints.write(attempt.tenant, state)
        command = KeepCheckpoint(name=attempt.job.name, attempt=attempt.number, checkpoint=blob)
        attempt.checkpoint = await self._checkpoints.keep(command, attempt.tenant, attempt.checkpoint)

    async def _hand_back(self, attempt: _Attempt) -> None:
        """Another worker, or this one after its restart, goes on where this one is."""
        detail = {}
        if attempt.run is not None and attempt.run.step > attempt.first_step:
            state = attempt.run.state(attempt.trained(time.monotonic()).total_seconds())
            detail = {"checkpoint": await self._checkpoints.write(attempt.tenant, state)}
        if await self._try(attempt.move(Move.HAND_BACK, **detail), "handed_back") and detail:
            await self._checkpoints.delete(attempt.checkpoint)

    def _tell(self, attempt: _Attempt, step: Step, now: float) -> None:
        self._metrics.steps.observe(now - attempt.stepped)
        attempt.stepped = now
        progress = resources_pb2.Progress(
            step=step.step,
            steps=step.steps,
            loss=step.loss,
            smoothed_loss=step.smoothed_loss,
            learning_rate=step.learning_rate,
        )
        elapsed = timedelta(seconds=now - attempt.began)
        progress.elapsed.FromTimedelta(elapsed)
        progress.remaining.FromTimedelta(elapsed * (step.steps - step.step) / (step.step - attempt.first_step))
        self._desk.tell(attempt.job.name, progress)

    def _let_go(self, attempt: _Attempt) -> None:
        """An attempt is not trained any more, and its place is free."""
        attempt.over = True
        self._attempts.pop(attempt.job.name, None)
        self._turns.leave(attempt.job.name)
        self._desk.wake()

    def _drop(self, attempt: _Attempt) -> None:
        """Nothing comes of an attempt."""
        self._let_go(attempt)
        self._desk.forget(attempt.job.name)
        self._start(self._clear(attempt), self._ending)
        self._metrics.ended.labels("cancelled").inc()

    def _give_up(self, attempt: _Attempt, error: Exception) -> None:
        """The job is impossible."""
        if not attempt.over:
            self._let_go(attempt)
            self._desk.forget(attempt.job.name)
            self._start(self._fail(attempt.job.name, attempt.number, error), self._ending)
            self._start(self._clear(attempt), self._ending)

    async def _clear(self, attempt: _Attempt) -> None:
        """A checkpoint is of no use to a job that has ended, or whose vectors are fixed."""
        if attempt.saving is not None:
            await asyncio.wait({attempt.saving})
        await self._checkpoints.delete(attempt.checkpoint)

    async def _finish(self, attempt: _Attempt, run: Run, training_time: timedelta) -> None:
        """From vectors that are learned to a version on its way."""
        self._metrics.training.observe(training_time.total_seconds())
        try:
            row = await self._fix(attempt, run, training_time)
        except Exception as error:
            await self._fail(attempt.job.name, attempt.number, error)
        else:
            self._start(self._publish(row), self._beside)
            await self._clear(attempt)
        finally:
            self._desk.forget(attempt.job.name)

    async def _fix(self, attempt: _Attempt, run: Run, training_time: timedelta) -> Row:
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

    def _start(self, work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        """Has `work` done beside the ticks; its task is in `among` until it has ended."""
        task = self._begin(work)
        among.add(task)
        task.add_done_callback(among.discard)
        return task

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

    async def _try(self, move: MoveJob, how: str) -> bool:
        """A last word about an attempt, which nobody hears (False) if the job was cancelled meanwhile."""
        try:
            await self._desk.move(move)
        except FailedPrecondition as error:
            _logger.info("attempt is over", job=move.name, attempt=move.attempt, why=error.message)
            self._metrics.ended.labels("cancelled").inc()
            return False
        self._metrics.ended.labels(how).inc()
        return True
