"""A queue in NATS JetStream, for workers in separate processes."""

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog
from nats.aio.msg import Msg
from nats.errors import TimeoutError as PullTimeout
from pseudoword.names import InvalidName, JobName

from rpc.errors import FailedPrecondition, NotFound
from rpc.retry import retry_while_unavailable
from rpc.watchers import raise_if_cancelled
from trainer.jobs.commands import MoveJob
from trainer.jobs.job_store import JobStore
from trainer.jobs.life_cycle import ENDED, Move, State
from trainer.jobs.tables import Row
from trainer.queue.broker import NATS_ERRORS, Broker
from trainer.worker.attempt import Attempt
from trainer.worker.completion import JobCompletion

_PULL_TIMEOUT_S = 5.0
_RETRY_PAUSE_S = 1.0  # after an error of NATS
_HOLDER_TIMEOUT_S = 5.0  # longest wait for the reply of the worker that holds a job
_RENEWALS = 3  # of a lease within ack_wait
_logger = structlog.get_logger(__name__)


@dataclass(kw_only=True)
class Lease:
    """A job's message that this worker holds and has to acknowledge; `attempt` is 0 until the job is taken."""

    message: Msg
    attempt: int = 0


class JetStreamQueue:
    """A JobQueue: the jobs of one base model, pulled one at a time when this worker has a free place.

    A message is a lease: this worker renews it until the attempt is over. If it is not renewed for `ack_wait`, NATS
    delivers it to another worker, which reads the log: a job that is RUNNING there has lost its worker, unless that
    worker still replies (NATS may have been unavailable, or have lost its store). An attempt's outcome is committed to
    the log first; the message is acknowledged after that.
    """

    def __init__(
        self, broker: Broker, job_store: JobStore, completion: JobCompletion, *, base: str, max_worker_deaths: int
    ) -> None:
        """`base` is the base model's token; a job fails after `max_worker_deaths` worker deaths. Create it before
        broker.open()."""
        self._broker = broker
        self._job_store = job_store
        self._completion = completion
        self._base = base
        self._max_worker_deaths = max_worker_deaths
        self._leases: dict[str, Lease] = {}
        # The row of a job whose message is held and that take() has not taken yet.
        self._offered: Row | None = None
        self._job_wanted = asyncio.Event()
        self._yield_to = ""
        broker.subscribe("held", self._on_holder_query)
        broker.subscribe("yield.*.*", self._on_yield_request)

    async def open(self) -> None:
        """Does nothing: NATS delivers the messages that were left."""

    async def run(self) -> None:
        """As JobQueue.run."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pull())
            tasks.create_task(self._renew_leases())

    async def next(self) -> Row | None:
        """As JobQueue.next: the job for which the dispatcher has requested a place, returned once for each request."""
        name, self._yield_to = self._yield_to, ""
        if not name:
            return None
        row, _ = await retry_while_unavailable(lambda: self._job_store.row(name, cached=True))
        return row if row["state"] == State.QUEUED else None

    async def take(self, *, alone: bool) -> Row | None:
        """As JobQueue.take."""
        row = self._offered
        if row is None:
            self._job_wanted.set()
            return None
        if row["state"] == State.QUEUED and row["worker_deaths"] and not alone:
            now, _ = await retry_while_unavailable(partial(self._job_store.row, row["name"], cached=True))
            if now["state"] == State.QUEUED:
                return None
        self._offered = None
        lease = self._leases[row["name"]]
        try:
            if row["state"] == State.QUEUED:
                row = await self._job_store.move(MoveJob(name=row["name"], move=Move.TAKE))
        except FailedPrecondition:  # cancelled meanwhile, or taken by another worker because the lease had expired
            await self._end_lease(row["name"])
            self._job_wanted.set()
            return None
        lease.attempt = row["attempt"]
        return row

    async def release(self, attempt: Attempt) -> None:
        """As JobQueue.release. Acknowledges the message as `_end_lease` does; otherwise the message belongs to another
        worker, or will be delivered to one."""
        if attempt.job.name in self._leases:
            await self._end_lease(attempt.job.name, handed_back=(attempt.number, attempt.worker_deaths))

    async def close(self) -> None:
        """As JobQueue.close."""
        self._offered = None
        for lease in self._leases.values():
            with suppress(*NATS_ERRORS):
                await lease.message.nak()
        self._leases.clear()

    async def _pull(self) -> None:
        """Pulls a message whenever a job is wanted, until cancelled."""
        jobs = None
        while True:
            raise_if_cancelled()
            await self._job_wanted.wait()
            try:
                jobs = jobs or await self._broker.pull(self._base)
                (message,) = await jobs.fetch(1, timeout=_PULL_TIMEOUT_S)
            except PullTimeout:
                continue
            except NATS_ERRORS as error:
                _logger.warning("could not pull a job from NATS", error=f"{type(error).__name__}: {error}")
                jobs = None
                await asyncio.sleep(_RETRY_PAUSE_S)
                continue
            await self._receive(message)

    async def _receive(self, message: Msg) -> None:
        """Offers the message's job to take(), or ends or returns the message."""
        try:
            name = self._broker.job_of(message.subject)
            row, _ = await retry_while_unavailable(lambda: self._job_store.row(name))
        except (InvalidName, NotFound):
            _logger.warning("message without a job deleted", subject=message.subject)
            with suppress(*NATS_ERRORS):
                await message.term()
            return
        if name in self._leases:  # held here, but NATS did not receive the renewals
            self._leases[name].message = message
            return
        if row["state"] in {State.RUNNING, State.PUBLISHING} and await self._is_held(row):
            _logger.info("message returned: another worker still holds the job", job=name, attempt=row["attempt"])
            with suppress(*NATS_ERRORS):
                await message.nak(delay=self._broker.ack_wait_s)
            return
        self._leases[name] = Lease(message=message)
        if row["state"] == State.RUNNING:
            await self._completion.worker_died(row, self._max_worker_deaths)
            row, _ = await retry_while_unavailable(lambda: self._job_store.row(name))
        if row["state"] in {State.QUEUED, State.PUBLISHING}:
            self._job_wanted.clear()
            self._offered = row
            self._job_store.events.wake()
        else:
            await self._end_lease(name)

    async def _end_lease(self, name: str, *, handed_back: tuple[int, int] | None = None) -> None:
        """Acknowledges a job's message if the job has ended, or if the attempt `handed_back` (its number and worker
        deaths) was handed back and the job is queued: the dispatcher then sends the job again when its turn comes."""
        lease = self._leases.pop(name)
        row, _ = await retry_while_unavailable(lambda: self._job_store.row(name))
        queued = row["state"] == State.QUEUED and (row["attempt"], row["worker_deaths"]) == handed_back
        if row["state"] in ENDED or queued:
            with suppress(*NATS_ERRORS):  # the worker that gets the message next finds the same state in the log
                await lease.message.ack()

    async def _renew_leases(self) -> None:
        """Renews every lease, until cancelled."""
        while True:
            raise_if_cancelled()
            await asyncio.sleep(self._broker.ack_wait_s / _RENEWALS)
            for lease in list(self._leases.values()):
                with suppress(*NATS_ERRORS):
                    await lease.message.in_progress()

    async def _is_held(self, row: Row) -> bool:
        """Whether another worker replies that it holds the attempt that the log names."""
        question = json.dumps([row["name"], row["attempt"]]).encode()
        return await self._broker.request("held", question, min(_HOLDER_TIMEOUT_S, self._broker.ack_wait_s / _RENEWALS))

    async def _on_holder_query(self, message: Msg) -> None:
        name, attempt = json.loads(message.data)
        lease = self._leases.get(name)
        if lease is not None and lease.attempt == attempt:
            with suppress(*NATS_ERRORS):
                await message.respond(b"")

    async def _on_yield_request(self, message: Msg) -> None:
        with suppress(InvalidName):
            if self._broker.job_of(message.subject) in self._leases:
                self._yield_to = str(JobName.parse(message.data.decode()))
                self._job_store.events.wake()
