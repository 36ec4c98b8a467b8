"""Jobs from NATS JetStream, for workers in processes of their own."""

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NothingCame
from pseudoword.names import InvalidName, JobName

from rpc.errors import FailedPrecondition, NotFound
from rpc.retry import retry_while_unavailable
from rpc.watchers import raise_if_cancelled
from trainer.jobs.commands import MoveJob
from trainer.jobs.job_store import JobStore
from trainer.jobs.life_cycle import ENDED, Move, State
from trainer.jobs.tables import Row
from trainer.queue.broker import AWAY, Broker
from trainer.worker.attempt import Attempt
from trainer.worker.completion import JobCompletion
from trainer.worker.job_queue import workers_lost

_PULL_S = 5.0  # for how long one request for a job waits
_PAUSE_S = 1.0  # before NATS is asked again when something was wrong
_OWNER_TIMEOUT_S = 5.0  # longest that the holder of a job is waited for to say so
_BEATS = 3  # within ack_wait
_logger = structlog.get_logger(__name__)


@dataclass(kw_only=True)
class Lease:
    """A job's message while it is ours to acknowledge; `attempt` is 0 until the job is taken."""

    message: Msg
    attempt: int = 0


class JetStreamQueue:
    """A JobQueue: one base model's jobs, pulled one at a time when this worker has a place.

    A message is a lease: it is renewed until the attempt is over, and given to another worker when it was not for
    `ack_wait`. Who is given one looks into the log: a job that is RUNNING there has lost its worker, unless that one
    still answers (NATS may have been away, or have lost its store). Every word about the attempt goes to the log first,
    the message is acknowledged after it.
    """

    def __init__(
        self, broker: Broker, job_store: JobStore, completion: JobCompletion, *, base: str, max_worker_deaths: int
    ) -> None:
        """`base` is the base model's token; `max_worker_deaths` workers may die of a job. Before broker.open()."""
        self._broker = broker
        self._job_store = job_store
        self._completion = completion
        self._base = base
        self._max_worker_deaths = max_worker_deaths
        self._leases: dict[str, Lease] = {}
        # A job that is held and not taken yet, while this worker makes up its mind.
        self._offered: Row | None = None
        self._wanted = asyncio.Event()
        self._waits = ""
        broker.hear("held", self._answer)
        broker.hear("yield.*.*", self._hear_wish)

    async def open(self) -> None:
        """What was left is with NATS."""

    async def run(self) -> None:
        """As JobQueue.run."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pull())
            tasks.create_task(self._beat())

    async def next(self) -> Row | None:
        """As JobQueue.next: the one that the dispatcher has asked this worker to make room for, told once."""
        name, self._waits = self._waits, ""
        if not name:
            return None
        row, _ = await retry_while_unavailable(lambda: self._job_store.row(name, cached=True))
        return row if row["state"] == State.QUEUED else None

    async def take(self, *, alone: bool) -> Row | None:
        """As JobQueue.take."""
        row = self._offered
        if row is None:
            self._wanted.set()
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
        except FailedPrecondition:  # cancelled in between, or another one's since we were not heard of
            await self._let_go(row["name"])
            self._wanted.set()
            return None
        lease.attempt = row["attempt"]
        return row

    async def release(self, attempt: Attempt) -> None:
        """As JobQueue.release. The message goes where the log says that its job needs none, or another one; else it is
        another worker's, or will be."""
        if attempt.job.name in self._leases:
            await self._let_go(attempt.job.name, handed_back=(attempt.number, attempt.worker_deaths))

    async def close(self) -> None:
        """As JobQueue.close."""
        self._offered = None
        for lease in self._leases.values():
            with suppress(*AWAY):
                await lease.message.nak()
        self._leases.clear()

    async def _pull(self) -> None:
        """Gets a job whenever one is wanted, for ever."""
        jobs = None
        while True:
            raise_if_cancelled()
            await self._wanted.wait()
            try:
                jobs = jobs or await self._broker.pull(self._base)
                (message,) = await jobs.fetch(1, timeout=_PULL_S)
            except NothingCame:
                continue
            except AWAY as error:
                _logger.warning("no job from NATS", error=f"{type(error).__name__}: {error}")
                jobs = None
                await asyncio.sleep(_PAUSE_S)
                continue
            await self._receive(message)

    async def _receive(self, message: Msg) -> None:
        """Offers the job, or says what becomes of its message."""
        try:
            name = self._broker.job_of(message.subject)
            row, _ = await retry_while_unavailable(lambda: self._job_store.row(name))
        except (InvalidName, NotFound):
            _logger.warning("a message of no job", subject=message.subject)
            with suppress(*AWAY):
                await message.term()
            return
        if name in self._leases:  # it was not heard that we have it
            self._leases[name].message = message
            return
        if row["state"] in {State.RUNNING, State.PUBLISHING} and await self._is_held(row):
            _logger.info("its worker still has it", job=name, attempt=row["attempt"])
            with suppress(*AWAY):
                await message.nak(delay=self._broker.ack_wait_s)
            return
        self._leases[name] = Lease(message=message)
        if row["state"] == State.RUNNING:
            row = await self._lose(row)
        if row["state"] in {State.QUEUED, State.PUBLISHING}:
            self._wanted.clear()
            self._offered = row
            self._job_store.events.wake()
        else:
            await self._let_go(name)

    async def _lose(self, row: Row) -> Row:
        """What becomes of a job whose worker is not heard of any more."""
        name, attempt = row["name"], row["attempt"]
        if row["worker_deaths"] + 1 >= self._max_worker_deaths:
            await self._completion.fail(name, attempt, workers_lost(name, self._max_worker_deaths))
        else:
            _logger.warning("a worker is lost", job=name, attempt=attempt)
            with suppress(FailedPrecondition):  # it has ended by itself just now
                await self._job_store.move(MoveJob(name=name, move=Move.WORKER_DIED, attempt=attempt))
        row, _ = await retry_while_unavailable(lambda: self._job_store.row(name))
        return row

    async def _let_go(self, name: str, *, handed_back: tuple[int, int] | None = None) -> None:
        """Acknowledges a job's message if the job has ended, or is queued again because the attempt with the worker
        deaths in `handed_back` was handed back: then the dispatcher sends it once more, when its turn comes."""
        lease = self._leases.pop(name)
        row, _ = await retry_while_unavailable(lambda: self._job_store.row(name))
        waits = row["state"] == State.QUEUED and (row["attempt"], row["worker_deaths"]) == handed_back
        if row["state"] in ENDED or waits:
            with suppress(*AWAY):  # whoever is given it next finds the same in the log
                await lease.message.ack()

    async def _beat(self) -> None:
        """Renews every lease, for ever."""
        while True:
            raise_if_cancelled()
            await asyncio.sleep(self._broker.ack_wait_s / _BEATS)
            for lease in list(self._leases.values()):
                with suppress(*AWAY):
                    await lease.message.in_progress()

    async def _is_held(self, row: Row) -> bool:
        """Whether another worker says that it is at the attempt that the log has."""
        question = json.dumps([row["name"], row["attempt"]]).encode()
        return await self._broker.ask("held", question, min(_OWNER_TIMEOUT_S, self._broker.ack_wait_s / _BEATS))

    async def _answer(self, message: Msg) -> None:
        name, attempt = json.loads(message.data)
        lease = self._leases.get(name)
        if lease is not None and lease.attempt == attempt:
            with suppress(*AWAY):
                await message.respond(b"")

    async def _hear_wish(self, message: Msg) -> None:
        with suppress(InvalidName):
            if self._broker.job_of(message.subject) in self._leases:
                self._waits = str(JobName.parse(message.data.decode()))
                self._job_store.events.wake()
