"""The worker: takes jobs from the queue, has the engine train them together, and sees to their ends."""

import asyncio
import io
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import structlog
from PIL import Image
from pseudoword.names import ConceptName
from pseudoword.trainer.v1 import resources_pb2

from rpc.identity import Principal, from_json
from rpc.retry import retry_while_unavailable
from trainer.jobs.commands import KeepCheckpoint
from trainer.jobs.conversions import job_of
from trainer.jobs.job_store import JobStore
from trainer.jobs.life_cycle import Move, State
from trainer.jobs.tables import Row
from trainer.metrics import TrainerMetrics
from trainer.training.run import Run, RunState, Step
from trainer.worker.attempt import Attempt
from trainer.worker.checkpoint_store import CheckpointStore
from trainer.worker.completion import JobCompletion
from trainer.worker.drr import DeficitRoundRobin, Entry
from trainer.worker.engine import Engine, TickResult
from trainer.worker.job_queue import JobQueue
from trainer.worker.task_loader import TaskLoader
from trainer.worker.tick_size import TickSizer

_T = TypeVar("_T")
_logger = structlog.get_logger(__name__)


class Worker:
    """One device's worker: several jobs are trained at once, by the one thread that owns the model; finished ones are
    published beside it. Evaluations have the thread while nothing is trained, a slice at a time. Lives on the server's
    event loop."""

    def __init__(
        self,
        job_store: JobStore,
        queue: JobQueue,
        checkpoints: CheckpointStore,
        engine: Engine,
        tasks: TaskLoader,
        completion: JobCompletion,
        metrics: TrainerMetrics,
        *,
        max_running: int,
        quantum_rows: int,
        checkpoint_every: timedelta,
    ) -> None:
        """At most `max_running` jobs are held at once; a tenant has `quantum_rows` rows before the next one's turn."""
        self._job_store = job_store
        self._queue = queue
        self._checkpoints = checkpoints
        self._engine = engine
        self._tasks = tasks
        self._completion = completion
        self._metrics = metrics
        self._max_running = max_running
        self._checkpoint_s = checkpoint_every.total_seconds()
        self._drr = DeficitRoundRobin(quantum_rows=quantum_rows)
        self._tick_sizer = TickSizer()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="train")
        self._attempts: dict[str, Attempt] = {}
        metrics.held.set_function(lambda: len(self._attempts))
        # What goes on beside the ticks: preparing and publishing, which the next server takes up where they stop, and
        # the last words about an attempt, which are waited for.
        self._beside: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._pulling: asyncio.Task[None] | None = None
        self._crash: BaseException | None = None

    async def start(self) -> None:
        """Takes up what an earlier server left, then works until stop()."""
        await retry_while_unavailable(self._job_store.count)
        self._job_store.events.on_move(self._moved)
        await self._queue.open()
        self._pulling = self._begin(self._queue.run())
        self._loop = self._begin(self._run())

    async def stop(self) -> None:
        """Hands the jobs that are trained back and lets go of what is published; the log has both. Ends within a tick.

        Raises what the worker has died of, if it has.
        """
        self._stopping.set()
        self._job_store.events.wake()
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
            if self._pulling is not None:
                self._pulling.cancel()
                await asyncio.wait({self._pulling})
            await self._queue.close()
        except asyncio.CancelledError:  # no time left
            if self._loop is not None:
                self._loop.cancel()
            raise
        finally:
            self._thread.shutdown(wait=False)
        if self._crash is not None:
            raise self._crash

    async def _run(self) -> None:
        while not self._stopping.is_set():
            if self._job_store.events.take_work():
                await self._take()
            ready = {name: attempt for name, attempt in self._attempts.items() if attempt.run is not None}
            measured = [attempt for attempt in self._attempts.values() if attempt.measurement is not None]
            if ready:
                await self._tick(ready)
            elif measured:
                await self._measure(min(measured, key=lambda one: (-one.job.priority, one.created_us)))
            elif not self._stopping.is_set():
                await self._job_store.events.wait_for_work()

    async def _take(self) -> None:
        """Takes jobs for as long as there are some, and places for them.

        A job that a worker was lost with is trained alone: if it is what kills them, it takes no other with it again.
        """
        while not self._stopping.is_set():
            if any(attempt.worker_deaths for attempt in self._attempts.values()):
                return
            if len(self._attempts) >= self._max_running and not await self._make_room():
                return
            row = await self._queue.take(alone=not self._attempts)
            if row is None:
                return
            attempt = Attempt(
                job=job_of(row, row["revision"]),
                tenant=row["tenant"],
                number=row["attempt"],
                worker_deaths=row["worker_deaths"],
                created_us=row["created_us"],
                checkpoint=row["detail"].get("checkpoint", ""),
            )
            if row["state"] == State.PUBLISHING:
                self._start(self._publish(attempt, row), self._beside)
                continue
            if (before := self._attempts.get(attempt.job.name)) is not None:
                self._let_go(before)  # cancelled and retried before anybody looked
                self._start(self._settle(before), self._ending)
            self._attempts[attempt.job.name] = attempt
            self._start(self._prepare(attempt), self._beside)

    async def _make_room(self) -> bool:
        """Whether there is a place now: the newest one of a job below priority 0 is for any other, and a tenant that
        has none gets the newest one of the tenant that has most, whose job goes on later from its checkpoint. So long
        jobs of one tenant do not keep the others waiting."""
        waits = await self._queue.next()
        if len(self._attempts) < self._max_running:  # one has ended meanwhile
            return True
        if waits is None or waits["priority"] < 0 or waits["worker_deaths"]:
            return False
        giving = [one for one in self._attempts.values() if one.job.priority < 0]
        if not giving:
            held = Counter(attempt.tenant for attempt in self._attempts.values())
            tenant, count = held.most_common(1)[0]
            if count < 2 or waits["tenant"] in held:
                return False
            giving = [one for one in self._attempts.values() if one.tenant == tenant]
        attempt = giving[-1]
        self._let_go(attempt)
        self._job_store.events.forget(attempt.job.name)
        await self._hand_back(attempt)
        return True

    async def _prepare(self, attempt: Attempt) -> None:
        """Makes an attempt ready to be trained, or its version to be measured."""
        try:
            await self._look(attempt.job.name)
            if attempt.over:  # cancelled before it was known to be ours
                return
            row, _ = await self._job_store.row(attempt.job.name, cached=True)
            prepare = self._prepare_evaluation if attempt.job.evaluates else self._prepare_training
            await prepare(attempt, from_json(row["principal"]))
        except Exception as error:
            self._give_up(attempt, error)
            return
        self._job_store.events.wake()

    async def _prepare_training(self, attempt: Attempt, creator: Principal) -> None:
        """Raises whatever makes the job impossible."""
        job = attempt.job
        state = await self._checkpoints.read(attempt.checkpoint)
        task = await self._tasks.training(job, creator)
        if state is not None:
            attempt.trained_s = state.trained_s
            _logger.info("goes on from a checkpoint", job=job.name, attempt=attempt.number, step=len(state.losses))
        run = await self._compute(lambda: self._engine.prepare(task, state))
        if attempt.over:
            return
        attempt.run = run
        if job.word_at_once and not job.first_version:
            self._start(self._completion.at_once(attempt, run), self._beside)
        attempt.began = attempt.stepped = attempt.saved = time.monotonic()
        attempt.first_step = run.step
        entry = Entry(tenant=attempt.tenant, priority=job.priority, order=attempt.created_us)
        self._drr.join(job.name, entry)

    async def _prepare_evaluation(self, attempt: Attempt, creator: Principal) -> None:
        """Raises whatever makes the job impossible."""
        subject = await self._tasks.evaluation(attempt.job, creator)
        measurement = await self._compute(lambda: self._engine.measure(subject))
        attempt.began = time.monotonic()
        attempt.measurement = measurement

    async def _measure(self, attempt: Attempt) -> None:
        """Computes a slice of an evaluation."""
        measurement, began = attempt.measurement, time.monotonic()
        assert measurement is not None
        try:
            await self._compute(measurement.advance)
        except Exception as error:
            self._give_up(attempt, error)
            return
        now = time.monotonic()
        self._metrics.slices.observe(now - began)
        if attempt.over:
            return
        progress = attempt.progress(measurement.made, measurement.slices, now)
        self._job_store.events.report(attempt.job.name, attempt.number, progress)
        if measurement.done:
            self._let_go(attempt)
            self._start(self._finish(attempt, self._completion.fix_figures(attempt, measurement)), self._ending)

    async def _tick(self, ready: dict[str, Attempt]) -> None:
        """Trains the next rows."""
        limit = self._engine.max_rows
        wanted = {name: min(attempt.run.rows_left, limit) for name, attempt in ready.items() if attempt.run is not None}
        granted = self._drr.grant(wanted, self._tick_sizer.useful_rows(limit, sum(wanted.values())))
        attempts = [ready[name] for name in granted]
        grants = [(attempt.run, granted[attempt.job.name]) for attempt in attempts if attempt.run is not None]

        def tick() -> tuple[list[TickResult], float]:
            began = time.monotonic()  # not before: the thread may be encoding somebody's pictures
            return self._engine.tick(grants), time.monotonic() - began

        ticked, seconds = await self._compute(tick)
        now = time.monotonic()
        if ticked:
            rows = sum(granted.values())
            self._tick_sizer.observe(rows, seconds)
            self._metrics.ticks.observe(seconds)
            self._metrics.rows.inc(rows)
        by_run = {id(one.run): one for one in ticked}
        for attempt in attempts:
            if not attempt.over and (one := by_run.get(id(attempt.run))) is not None:
                self._heed(attempt, one, now)
                if (
                    one.step is not None
                    and not attempt.over
                    and self._job_store.events.previews.due(attempt.job.name, now)
                ):
                    await self._preview(attempt, one.run)

    def _heed(self, attempt: Attempt, ticked: TickResult, now: float) -> None:
        """What a tick came to for one attempt."""
        if ticked.error is not None:
            self._give_up(attempt, ticked.error)
        elif ticked.step is not None:
            self._tell(attempt, ticked.step, now)
            if ticked.run.done:
                self._let_go(attempt)
                trained = attempt.trained(now)
                self._metrics.training.observe(trained.total_seconds())
                self._start(self._finish(attempt, self._completion.fix(attempt, ticked.run, trained)), self._ending)
            elif now - attempt.saved >= self._checkpoint_s and (attempt.saving is None or attempt.saving.done()):
                state = ticked.run.state(attempt.trained(now).total_seconds())
                attempt.saved, attempt.saving = now, self._start(self._save(attempt, state), self._ending)

    async def _preview(self, attempt: Attempt, run: Run) -> None:
        """Draws how far a word is, for those who watch."""
        name, sentence, began = attempt.job.name, run.task.templates[0][0], time.monotonic()
        try:
            pixels = await self._compute(lambda: self._engine.preview(run, sentence))
        except Exception as error:  # of no weight for the training; a device in trouble is met by the next tick
            _logger.warning("no preview could be drawn", job=name, error=str(error))
            return
        finally:
            self._job_store.events.previews.drawn(name, began, time.monotonic())
        png = await asyncio.to_thread(_png, pixels)
        prompt = sentence.replace("{}", f"<{ConceptName.parse(attempt.job.concept).concept}>")
        if not attempt.over:
            preview = resources_pb2.JobEvent.Preview(step=run.step, png=png, prompt=prompt)
            self._job_store.events.report(name, attempt.number, preview)

    async def _save(self, attempt: Attempt, state: RunState) -> None:
        """Keeps a checkpoint, if the attempt still holds its job then."""
        blob = await self._checkpoints.write(attempt.tenant, state)
        command = KeepCheckpoint(name=attempt.job.name, attempt=attempt.number, checkpoint=blob)
        attempt.checkpoint = await self._checkpoints.keep(command, attempt.tenant, attempt.checkpoint)

    async def _hand_back(self, attempt: Attempt) -> None:
        """Another worker, or this one after its restart, goes on where this one is."""
        if attempt.saving is not None:
            await asyncio.wait({attempt.saving})
        detail = {}
        if attempt.run is not None and attempt.run.step > attempt.first_step:
            state = attempt.run.state(attempt.trained(time.monotonic()).total_seconds())
            detail = {"checkpoint": await self._checkpoints.write(attempt.tenant, state)}
        await self._completion.say(attempt.move(Move.HAND_BACK, **detail), "handed_back")
        await self._checkpoints.clear(attempt.job.name, attempt.checkpoint, *detail.values())
        await self._queue.release(attempt)

    def _tell(self, attempt: Attempt, step: Step, now: float) -> None:
        self._metrics.steps.observe(now - attempt.stepped)
        attempt.stepped = now
        progress = attempt.progress(step.step, step.steps, now)
        progress.loss, progress.smoothed_loss, progress.learning_rate = (
            step.loss,
            step.smoothed_loss,
            step.learning_rate,
        )
        self._job_store.events.report(attempt.job.name, attempt.number, progress)

    def _let_go(self, attempt: Attempt) -> None:
        """An attempt is not trained any more, and its place is free."""
        attempt.over = True
        self._attempts.pop(attempt.job.name, None)
        self._drr.leave(attempt.job.name)
        self._job_store.events.wake()

    def _moved(self, name: str) -> None:
        if name in self._attempts:
            self._start(self._look(name), self._ending)

    async def _look(self, name: str) -> None:
        """If a job that is held has become another worker's, or nobody's, it is trained no longer than the tick."""
        attempt = self._attempts.get(name)
        row, _ = await retry_while_unavailable(lambda: self._job_store.row(name, cached=True))
        if attempt is None or attempt.over or (row["state"], row["attempt"]) == (State.RUNNING, attempt.number):
            return
        self._let_go(attempt)
        self._job_store.events.forget(name)
        if row["state"] != State.FAILED:  # by its own word at once, which has said so
            cancelled = row["state"] == State.CANCELLED
            self._metrics.ended.labels("cancelled" if cancelled else "lost").inc()
        _logger.info("attempt is over", job=name, attempt=attempt.number, state=row["state"])
        self._start(self._settle(attempt), self._ending)

    def _give_up(self, attempt: Attempt, error: Exception) -> None:
        """The job is impossible."""
        if not attempt.over:
            self._let_go(attempt)
            self._job_store.events.forget(attempt.job.name)
            self._start(self._fail(attempt, error), self._ending)

    async def _fail(self, attempt: Attempt, error: Exception) -> None:
        await self._completion.fail(attempt.job.name, attempt.number, error)
        await self._settle(attempt)

    async def _settle(self, attempt: Attempt) -> None:
        """Nothing more comes of an attempt."""
        await self._clear(attempt)
        await self._queue.release(attempt)

    async def _clear(self, attempt: Attempt) -> None:
        """A checkpoint is of no use to a job that has ended, or whose vectors are fixed."""
        if attempt.saving is not None:
            await asyncio.wait({attempt.saving})
        await self._checkpoints.clear(attempt.job.name, attempt.checkpoint)

    async def _finish(self, attempt: Attempt, fixing: Awaitable[Row]) -> None:
        """From vectors that are learned to a version on its way, or from figures to an evaluation."""
        try:
            row = await fixing
        except Exception as error:
            self._job_store.events.forget(attempt.job.name)
            await self._fail(attempt, error)
        else:
            self._job_store.events.forget(attempt.job.name)
            self._start(self._publish(attempt, row), self._beside)
            await self._clear(attempt)

    async def _publish(self, attempt: Attempt, row: Row) -> None:
        """From what is fixed, by this attempt or an earlier worker's, to the registry."""
        await self._completion.publish(row)
        await self._queue.release(attempt)

    async def _compute(self, work: Callable[[], _T]) -> _T:
        """Has the thread that owns the model do `work`, after what it was given before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

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


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
