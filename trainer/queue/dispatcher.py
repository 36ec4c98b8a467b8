"""Hands the waiting jobs out to NATS, fair between tenants, by comparing what the log says with what NATS has."""

import asyncio
import time

import structlog

from rpc.watchers import raise_if_cancelled
from trainer.jobs.job_store import JobStore
from trainer.jobs.life_cycle import State
from trainer.jobs.tables import Row
from trainer.metrics import TrainerMetrics
from trainer.queue.broker import AWAY, Broker, token_of
from trainer.queue.leadership import Leadership
from trainer.queue.sfq import Job, StartTimeFairQueue, trade

_LONGEST_S = 1.0  # between two looks: what NATS has lost is told by nobody
_PATIENCE_S = 2.0  # without a place, before a job is handed back for another one
_logger = structlog.get_logger(__name__)


class Dispatcher:
    """Keeps no state but whose turn it is: a new one goes on where another was killed, and two at once do no harm,
    since NATS takes a job once."""

    def __init__(
        self,
        broker: Broker,
        job_store: JobStore,
        leadership: Leadership,
        metrics: TrainerMetrics,
        *,
        ahead: int,
    ) -> None:
        """At most `ahead` jobs of a base model wait with NATS."""
        self._broker = broker
        self._job_store = job_store
        self._leadership = leadership
        self._ahead = ahead
        self._lines: dict[str, StartTimeFairQueue] = {}
        # Since when no worker of a base model has had a place that a tenant without any should have.
        self._wanted_since: dict[str, float] = {}
        metrics.dispatches.set_function(lambda: leadership.held)

    async def run(self) -> None:
        """Hands jobs out whenever it is this process's turn, until it is cancelled; then another one may begin."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._leadership.seek())
            tasks.create_task(self._hand_out())

    async def _hand_out(self) -> None:
        while True:
            raise_if_cancelled()
            if self._leadership.held:
                try:
                    await self._look()
                except AWAY as error:
                    _logger.warning("jobs wait for NATS", error=f"{type(error).__name__}: {error}")
            await self._job_store.events.wait_for_work(_LONGEST_S)
            self._job_store.events.take_work()

    async def _look(self) -> None:
        # In this order: a message goes after its job's end is in the log, so what is missing here and unfinished there
        # is lost, not done.
        sent = await self._broker.sent()
        jobs: dict[str, list[Row]] = {}
        for row in await self._job_store.unfinished():
            base = token_of(row["spec"]["base_model"])
            jobs.setdefault(base, []).append(row)
            if row["state"] != State.QUEUED and row["name"] not in sent:
                _logger.warning("sent again: NATS has lost its message", job=row["name"])
                await self._broker.send(base, row["name"])
        for base, rows in jobs.items():
            queued = [row for row in rows if row["state"] == State.QUEUED]
            if queued:
                demand = await self._broker.demand(base)
                line = self._lines.setdefault(base, StartTimeFairQueue())
                line.wait([row for row in queued if row["name"] not in sent])
                for sent_now in range(min(self._ahead - demand.untaken, len(line))):
                    if not line.ordinary and demand.untaken + sent_now:
                        break  # of those that everybody goes before, few are before everybody
                    await self._broker.send(base, line.first())
                running = [row for row in rows if row["state"] == State.RUNNING]
                await self._ask_for_room(base, None if demand.asking else trade(queued, running))

    async def _ask_for_room(self, base: str, wanted: tuple[Job, Job] | None) -> None:
        """Has a worker hand a job back for another one, once that was wanted for a while without a break."""
        now = time.monotonic()
        since = self._wanted_since.pop(base, now)
        if wanted is None:
            return
        if now - since < _PATIENCE_S:
            self._wanted_since[base] = since
            return
        waits, gives = wanted
        _logger.info("asks for a place", job=gives["name"], waits=waits["name"])
        await self._broker.tell(self._broker.topic("yield", gives["name"]), waits["name"].encode())
