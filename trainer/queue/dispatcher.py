"""Dispatches queued jobs through NATS, fair between tenants: compares the log with the stream and sends due jobs."""

import asyncio
import time

import structlog

from rpc.watchers import raise_if_cancelled
from trainer.jobs.job_store import JobStore
from trainer.jobs.life_cycle import State
from trainer.jobs.tables import Row
from trainer.metrics import TrainerMetrics
from trainer.queue.broker import NATS_ERRORS, Broker, token_of
from trainer.queue.leadership import Leadership
from trainer.queue.sfq import Job, StartTimeFairQueue, trade

_RECONCILE_INTERVAL_S = 1.0  # NATS does not report messages that it lost, so the stream is polled
_YIELD_AFTER_S = 2.0  # time without a free place after which a running job yields its own to a waiting one
_logger = structlog.get_logger(__name__)


class Dispatcher:
    """Keeps no state but the order of the tenants. A new dispatcher can therefore replace one that was killed, and two
    at the same time do no harm: the stream accepts one message for each job."""

    def __init__(
        self,
        broker: Broker,
        job_store: JobStore,
        leadership: Leadership,
        metrics: TrainerMetrics,
        *,
        ahead: int,
    ) -> None:
        """At most `ahead` undelivered messages of a base model are in the stream."""
        self._broker = broker
        self._job_store = job_store
        self._leadership = leadership
        self._ahead = ahead
        self._queues: dict[str, StartTimeFairQueue] = {}
        # By base model: since when a job should have had a running job's place.
        self._starved_since: dict[str, float] = {}
        metrics.dispatches.set_function(lambda: leadership.held)

    async def run(self) -> None:
        """Dispatches jobs while this process holds the lease. Gives the lease up when cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._leadership.seek())
            tasks.create_task(self._dispatch())

    async def _dispatch(self) -> None:
        while True:
            raise_if_cancelled()
            if self._leadership.held:
                try:
                    await self._reconcile()
                except NATS_ERRORS as error:
                    _logger.warning(
                        "no jobs are dispatched: NATS is unavailable", error=f"{type(error).__name__}: {error}"
                    )
            await self._job_store.events.wait_for_work(_RECONCILE_INTERVAL_S)
            self._job_store.events.take_work()

    async def _reconcile(self) -> None:
        # The stream is read before the log. A message is acknowledged only after its job's end is in the log, so a job
        # that is missing in the stream and unfinished in the log has lost its message.
        sent = await self._broker.sent()
        jobs: dict[str, list[Row]] = {}
        for row in await self._job_store.unfinished():
            base = token_of(row["spec"]["base_model"])
            jobs.setdefault(base, []).append(row)
            if row["state"] != State.QUEUED and row["name"] not in sent:
                _logger.warning("sent again: NATS has lost the job's message", job=row["name"])
                await self._broker.send(base, row["name"])
        for base, rows in jobs.items():
            queued = [row for row in rows if row["state"] == State.QUEUED]
            if queued:
                demand = await self._broker.demand(base)
                queue = self._queues.setdefault(base, StartTimeFairQueue())
                queue.wait([row for row in queued if row["name"] not in sent])
                for sent_now in range(min(self._ahead - demand.undelivered, len(queue))):
                    if not queue.ordinary and demand.undelivered + sent_now:
                        break  # at most one undelivered background job: ordinary jobs cannot overtake it
                    await self._broker.send(base, queue.first())
                running = [row for row in rows if row["state"] == State.RUNNING]
                await self._request_yield(base, None if demand.waiting_pulls else trade(queued, running))

    async def _request_yield(self, base: str, exchange: tuple[Job, Job] | None) -> None:
        """Requests that a worker hands a job back for a waiting one, once an exchange was due for _YIELD_AFTER_S."""
        now = time.monotonic()
        since = self._starved_since.pop(base, now)
        if exchange is None:
            return
        if now - since < _YIELD_AFTER_S:
            self._starved_since[base] = since
            return
        waiting, running = exchange
        _logger.info("requests a place", job=running["name"], waiting=waiting["name"])
        await self._broker.publish_hint(self._broker.topic("yield", running["name"]), waiting["name"].encode())
