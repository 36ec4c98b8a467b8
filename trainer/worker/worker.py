"""The worker: takes jobs from the queue, trains them together on the engine, and publishes the results."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

import structlog

from rpc.retry import retry_while_unavailable
from trainer.jobs.commands import KeepCheckpoint
from trainer.jobs.job_store import JobStore
from trainer.jobs.life_cycle import Move, State
from trainer.jobs.tables import Row
from trainer.metrics import TrainerMetrics
from trainer.training.run import RunState, Step
from trainer.worker.attempt import Attempt
from trainer.worker.background import BackgroundTasks
from trainer.worker.checkpoint_store import CheckpointStore
from trainer.worker.completion import JobCompletion
from trainer.worker.drr import DeficitRoundRobin, Entry
from trainer.worker.engine import Engine, TickResult
from trainer.worker.job_queue import JobQueue
from trainer.worker.previewer import Previewer
from trainer.worker.task_loader import TaskLoader
from trainer.worker.tick_size import TickSizer

_T = TypeVar("_T")
_logger = structlog.get_logger(__name__)


class Worker:
    """One device's worker. One thread owns the model and trains several jobs together; results are published meanwhile.
    While no job trains, the thread evaluates, a slice at a time. Lives on the server's event loop."""

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
        on_crash: Callable[[], None],
    ) -> None:
        """At most `max_running` jobs are held together; a tenant is granted `quantum_rows` rows before the next
        tenant's turn. `on_crash` is called when the worker has crashed; stop() then raises the error."""
        self._job_store = job_store
        self._events = job_store.events
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
        self._previewer = Previewer(engine, job_store.events, self._compute)
        self._attempts: dict[str, Attempt] = {}
        metrics.held.set_function(lambda: len(self._attempts))
        self._background = BackgroundTasks(on_crash)
        self._stopping = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._pulling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Recovers jobs that an earlier server left, then works until stop()."""
        await retry_while_unavailable(self._job_store.count)
        self._events.on_move(self._on_move)
        await self._queue.open()
        self._pulling = self._background.run(self._queue.run())
        self._loop = self._background.run(self._run())

    async def stop(self) -> None:
        """Hands the running jobs back to the queue and stops publishing; the log has the state of both. Returns within
        a tick.

        Raises the error that crashed the worker, if one did.
        """
        self._stopping.set()
        self._events.wake()
        try:
            if self._loop is not None:
                await asyncio.shield(self._loop)
            await self._background.stop()
            for attempt in list(self._attempts.values()):
                self._detach(attempt)
                await self._requeue(attempt)
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
        if self._background.crash is not None:
            raise self._background.crash

    async def _run(self) -> None:
        while not self._stopping.is_set():
            if self._events.take_work():
                await self._take()
            ready = {name: attempt for name, attempt in self._attempts.items() if attempt.run is not None}
            measured = [attempt for attempt in self._attempts.values() if attempt.measurement is not None]
            if ready:
                await self._tick(ready)
            elif measured:
                await self._measure(min(measured, key=lambda one: (-one.job.priority, one.created_us)))
            elif not self._stopping.is_set():
                await self._events.wait_for_work()

    # Taking and giving back jobs

    async def _take(self) -> None:
        """Takes jobs while the queue has some and the worker has free places.

        A job of which a worker has died is trained alone: if it kills another worker, no other job is affected.
        """
        while not self._stopping.is_set():
            if any(attempt.worker_deaths for attempt in self._attempts.values()):
                return
            if len(self._attempts) >= self._max_running and not await self._make_room():
                return
            row = await self._queue.take(alone=not self._attempts)
            if row is None:
                return
            attempt = Attempt(row=row)
            if row["state"] == State.PUBLISHING:
                self._background.drop_at_stop(self._publish(attempt, row))
                continue
            if (previous := self._attempts.get(attempt.name)) is not None:
                # The job was cancelled and retried before this worker was notified.
                self._detach(previous)
                self._background.finish_at_stop(self._release(previous))
            self._attempts[attempt.name] = attempt
            self._background.drop_at_stop(self._prepare(attempt))

    async def _make_room(self) -> bool:
        """Whether a place is free, or was freed: long jobs of one tenant must not block the other tenants.

        The newest job below priority 0 yields its place to any other job. Otherwise the newest job of the tenant with
        the most jobs yields to a tenant without a job. The yielding job resumes later from its checkpoint.
        """
        waiting = await self._queue.next()
        if len(self._attempts) < self._max_running:  # a job has ended meanwhile
            return True
        if waiting is None or waiting["priority"] < 0 or waiting["worker_deaths"]:
            return False
        yielding = [one for one in self._attempts.values() if one.job.priority < 0]
        if not yielding:
            held = Counter(attempt.tenant for attempt in self._attempts.values())
            tenant, count = held.most_common(1)[0]
            if count < 2 or waiting["tenant"] in held:
                return False
            yielding = [one for one in self._attempts.values() if one.tenant == tenant]
        attempt = yielding[-1]
        self._detach(attempt)
        self._events.forget(attempt.name)
        await self._requeue(attempt)
        return True

    async def _requeue(self, attempt: Attempt) -> None:
        """Hands a job back: another worker, or this one after its restart, resumes from this attempt's state."""
        if attempt.saving is not None:
            await asyncio.wait({attempt.saving})
        detail = {}
        if attempt.run is not None and attempt.run.step > attempt.first_step:
            state = attempt.run.state(attempt.trained(time.monotonic()).total_seconds())
            detail = {"checkpoint": await self._checkpoints.write(attempt.tenant, state)}
        await self._completion.record(attempt.move(Move.HAND_BACK, **detail), "handed_back")
        await self._checkpoints.clear(attempt.name, attempt.checkpoint, *detail.values())
        await self._queue.release(attempt)

    def _on_move(self, name: str) -> None:
        if name in self._attempts:
            self._background.finish_at_stop(self._recheck_ownership(name))

    async def _recheck_ownership(self, name: str) -> None:
        """Detaches an attempt whose job was cancelled or taken by another worker. A running tick is not interrupted."""
        attempt = self._attempts.get(name)
        row, _ = await retry_while_unavailable(lambda: self._job_store.row(name, cached=True))
        if attempt is None or attempt.over or (row["state"], row["attempt"]) == (State.RUNNING, attempt.number):
            return
        self._detach(attempt)
        self._events.forget(name)
        if row["state"] != State.FAILED:  # publishing the initial version failed it, and has recorded that
            cancelled = row["state"] == State.CANCELLED
            self._metrics.ended.labels("cancelled" if cancelled else "lost").inc()
        _logger.info("attempt is over", job=name, attempt=attempt.number, state=row["state"])
        self._background.finish_at_stop(self._release(attempt))

    # Preparing

    async def _prepare(self, attempt: Attempt) -> None:
        """Prepares an attempt for training, or its version for measurement."""
        try:
            await self._recheck_ownership(attempt.name)
            if attempt.over:  # cancelled before the attempt was registered
                return
            prepare = self._prepare_evaluation if attempt.job.evaluates else self._prepare_training
            await prepare(attempt)
        except Exception as error:
            self._abort(attempt, error)
            return
        self._events.wake()

    async def _prepare_training(self, attempt: Attempt) -> None:
        """Raises the error that makes the job impossible."""
        job = attempt.job
        state = await self._checkpoints.read(attempt.checkpoint)
        task = await self._tasks.training(job, attempt.creator)
        if state is not None:
            attempt.trained_s = state.trained_s
            _logger.info("resumed from a checkpoint", job=job.name, attempt=attempt.number, step=len(state.losses))
        run = await self._compute(lambda: self._engine.prepare(task, state))
        if attempt.over:
            return
        attempt.run = run
        if job.word_at_once and not job.first_version:
            self._background.drop_at_stop(self._completion.publish_initial(attempt, run))
        attempt.began = attempt.stepped = attempt.saved = time.monotonic()
        attempt.first_step = run.step
        entry = Entry(tenant=attempt.tenant, priority=job.priority, order=attempt.created_us)
        self._drr.join(job.name, entry)

    async def _prepare_evaluation(self, attempt: Attempt) -> None:
        """Raises the error that makes the job impossible."""
        subject = await self._tasks.evaluation(attempt.job, attempt.creator)
        measurement = await self._compute(lambda: self._engine.measure(subject))
        attempt.began = time.monotonic()
        attempt.measurement = measurement

    # Computing

    async def _measure(self, attempt: Attempt) -> None:
        """Computes the next slice of an evaluation."""
        measurement, began = attempt.measurement, time.monotonic()
        assert measurement is not None
        try:
            await self._compute(measurement.advance)
        except Exception as error:
            self._abort(attempt, error)
            return
        now = time.monotonic()
        self._metrics.slices.observe(now - began)
        if attempt.over:
            return
        progress = attempt.progress(measurement.slices_done, measurement.slices, now)
        self._events.report(attempt.name, attempt.number, progress)
        if measurement.done:
            self._detach(attempt)
            fixing = self._completion.fix_figures(attempt, measurement)
            self._background.finish_at_stop(self._finish(attempt, fixing))

    async def _tick(self, ready: dict[str, Attempt]) -> None:
        """Trains the next rows of the jobs that are ready."""
        limit = self._engine.max_rows
        wanted = {name: min(attempt.run.rows_left, limit) for name, attempt in ready.items() if attempt.run is not None}
        granted = self._drr.grant(wanted, self._tick_sizer.useful_rows(limit, sum(wanted.values())))
        attempts = [ready[name] for name in granted]
        grants = [(attempt.run, granted[attempt.name]) for attempt in attempts if attempt.run is not None]

        def tick() -> tuple[list[TickResult], float]:
            began = time.monotonic()  # in the thread, which may have encoded another job's pictures until now
            return self._engine.tick(grants), time.monotonic() - began

        results, seconds = await self._compute(tick)
        now = time.monotonic()
        if results:
            rows = sum(granted.values())
            self._tick_sizer.observe(rows, seconds)
            self._metrics.ticks.observe(seconds)
            self._metrics.rows.inc(rows)
        by_run = {id(result.run): result for result in results}
        for attempt in attempts:
            if not attempt.over and (result := by_run.get(id(attempt.run))) is not None:
                self._on_tick_result(attempt, result, now)
                if result.step is not None:
                    await self._previewer.draw_if_due(attempt, result.run, now)

    def _on_tick_result(self, attempt: Attempt, result: TickResult, now: float) -> None:
        if result.error is not None:
            self._abort(attempt, result.error)
        elif result.step is not None:
            self._report_progress(attempt, result.step, now)
            if result.run.done:
                self._detach(attempt)
                trained = attempt.trained(now)
                self._metrics.training.observe(trained.total_seconds())
                fixing = self._completion.fix_result(attempt, result.run, trained)
                self._background.finish_at_stop(self._finish(attempt, fixing))
            elif now - attempt.saved >= self._checkpoint_s and (attempt.saving is None or attempt.saving.done()):
                state = result.run.state(attempt.trained(now).total_seconds())
                attempt.saved = now
                attempt.saving = self._background.finish_at_stop(self._save(attempt, state))

    def _report_progress(self, attempt: Attempt, step: Step, now: float) -> None:
        self._metrics.steps.observe(now - attempt.stepped)
        attempt.stepped = now
        progress = attempt.progress(step.step, step.steps, now)
        progress.loss = step.loss
        progress.smoothed_loss = step.smoothed_loss
        progress.learning_rate = step.learning_rate
        self._events.report(attempt.name, attempt.number, progress)

    async def _save(self, attempt: Attempt, state: RunState) -> None:
        """Writes a checkpoint and makes the log name it, if the attempt still holds its job."""
        blob = await self._checkpoints.write(attempt.tenant, state)
        command = KeepCheckpoint(name=attempt.name, attempt=attempt.number, checkpoint=blob)
        attempt.checkpoint = await self._checkpoints.keep(command, attempt.tenant, attempt.checkpoint)

    async def _compute(self, work: Callable[[], _T]) -> _T:
        """Runs `work` on the thread that owns the model, after all work submitted before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # Ending attempts

    def _detach(self, attempt: Attempt) -> None:
        """Stops training an attempt and frees its place."""
        attempt.over = True
        self._attempts.pop(attempt.name, None)
        self._drr.leave(attempt.name)
        self._events.wake()

    def _abort(self, attempt: Attempt, error: Exception) -> None:
        """Fails a job that cannot be computed."""
        if not attempt.over:
            self._detach(attempt)
            self._events.forget(attempt.name)
            self._background.finish_at_stop(self._fail(attempt, error))

    async def _fail(self, attempt: Attempt, error: Exception) -> None:
        await self._completion.fail(attempt.name, attempt.number, error)
        await self._release(attempt)

    async def _release(self, attempt: Attempt) -> None:
        """Frees what an attempt that has ended holds: its checkpoint and its place in the queue."""
        await self._clear_checkpoint(attempt)
        await self._queue.release(attempt)

    async def _clear_checkpoint(self, attempt: Attempt) -> None:
        """Deletes the checkpoint of a job that has ended or whose vectors are fixed."""
        if attempt.saving is not None:
            await asyncio.wait({attempt.saving})
        await self._checkpoints.clear(attempt.name, attempt.checkpoint)

    async def _finish(self, attempt: Attempt, fixing: Awaitable[Row]) -> None:
        """Waits until the result is fixed in the log, then publishes it."""
        try:
            row = await fixing
        except Exception as error:
            self._events.forget(attempt.name)
            await self._fail(attempt, error)
        else:
            self._events.forget(attempt.name)
            self._background.drop_at_stop(self._publish(attempt, row))
            await self._clear_checkpoint(attempt)

    async def _publish(self, attempt: Attempt, row: Row) -> None:
        """Publishes the result that `row` names; this attempt or an earlier one has fixed it."""
        await self._completion.publish(row)
        await self._queue.release(attempt)
