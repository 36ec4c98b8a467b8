"""The queue in NATS piece by piece: a real nats-server, and several sides of one log in this process."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry
from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub
from pseudoword.trainer.v1 import resources_pb2

from rpc.errors import FailedPrecondition
from storage.ledger.ledger import Ledger
from storage.objects.blobs import Blobs
from storage.objects.disk import DiskStore
from tests.trainer.nats import Nats
from trainer.app import TABLE
from trainer.jobs.commands import AddPicture, CreateJob, MoveJob
from trainer.jobs.conversions import job_of
from trainer.jobs.job_store import JobStore
from trainer.jobs.life_cycle import Move, State
from trainer.jobs.state_machine import SHARDS, TrainerStateMachine
from trainer.metrics import TrainerMetrics
from trainer.queue.broker import Broker, token_of
from trainer.queue.dispatcher import Dispatcher
from trainer.queue.hints import Hints
from trainer.queue.jetstream_queue import JetStreamQueue
from trainer.queue.leadership import Leadership
from trainer.queue.settings import NatsSettings
from trainer.worker.attempt import Attempt
from trainer.worker.completion import JobCompletion
from trainer.worker.publisher import Publisher

ACK_WAIT = timedelta(seconds=1.2)
LEASE = timedelta(seconds=1)
BASE_MODEL = {"family": "miniature", "checkpoint": "miniature"}
BASE = token_of(BASE_MODEL)
PICTURE = f"tenants/default/pictures/{'a' * 64}"


@dataclass(kw_only=True)
class Side:
    """A process's part in the queue."""

    job_store: JobStore
    metrics: TrainerMetrics
    broker: Broker
    queue: JetStreamQueue
    leadership: Leadership
    # Of the queue, or where it hands jobs out, of the dispatcher.
    running: asyncio.Task[None]

    async def stall(self) -> None:
        """From here on it is as if the process had been stopped."""
        await ended(self.running)
        self.queue._leases.clear()

    async def create(self, name: str, tenant: str = "default", **more: Any) -> str:
        spec = {
            "concept": f"tenants/{tenant}/concepts/rex",
            "examples": [{"picture": PICTURE}],
            "recipe": {"steps": 3, "rows": 2},
            "base_model": BASE_MODEL,
        }
        name = f"tenants/{tenant}/jobs/{name}"
        fields: dict[str, Any] = {"priority": 0, "creator": "ann", "principal": "{}"}
        await self.job_store.commit_own(CreateJob(name=name, tenant=tenant, spec=spec, **(fields | more)), tenant)
        return name

    async def state(self, name: str) -> tuple[State, int]:
        row, _ = await self.job_store.row(name)
        return State(row["state"]), row["attempt"]

    async def take(self, *, alone: bool = True) -> Attempt:
        """The next job, waited for."""
        found: list[Any] = []

        async def came() -> bool:
            row = await self.queue.take(alone=alone)
            found.extend([] if row is None else [row])
            return bool(found)

        await until(came)
        (row,) = found
        return Attempt(row=row)

    async def end(self, attempt: Attempt) -> None:
        """As a worker that has brought a job to its end."""
        for move in (Move.FIX, Move.FINISH):
            await self.job_store.move(attempt.move(move))
        await self.queue.release(attempt)


MakeSide = Callable[..., Awaitable[Side]]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(3_000):
        if await holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come about within a minute")


@pytest.fixture
def nats(nats_binary: Path, tmp_path: Path) -> Iterator[Nats]:
    (tmp_path / "nats").mkdir()
    server = Nats(nats_binary, tmp_path / "nats")
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def side(tmp_path: Path, nats: Nats) -> AsyncIterator[MakeSide]:
    """Makes one more side; with `dispatches`, one that hands jobs out when it is its turn."""
    number = itertools.count()
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel("127.0.0.1:1"))

        async def make(*, dispatches: bool = False, max_worker_deaths: int = 3, ahead: int = 4) -> Side:
            folder = tmp_path / f"view{next(number)}"
            store = DiskStore(tmp_path / "jobs")
            ledger = Ledger.open(store, TrainerStateMachine(), shards=SHARDS, view_folder=folder)
            stack.push_async_callback(ledger.close)
            metrics = TrainerMetrics(CollectorRegistry())
            job_store = JobStore(ledger, metrics)
            publisher = Publisher(RegistryServiceStub(channel), internal_tries=1)
            completion = JobCompletion(job_store, Blobs(store), publisher, metrics, TABLE)
            broker = Broker(NatsSettings(servers=nats.url), ack_wait=ACK_WAIT)
            queue = JetStreamQueue(broker, job_store, completion, base=BASE, max_worker_deaths=max_worker_deaths)
            leadership = Leadership(broker, "dispatcher", LEASE)
            dispatcher = Dispatcher(broker, job_store, leadership, metrics, ahead=ahead)
            hints = Hints(broker, job_store, trains=not dispatches)
            broker.open()
            stack.push_async_callback(broker.close)
            for work in (hints.run(), job_store.follow()):
                stack.push_async_callback(ended, asyncio.create_task(work))
            running = asyncio.create_task(dispatcher.run() if dispatches else queue.run())
            stack.push_async_callback(ended, running)
            if dispatches:
                picture = AddPicture(
                    name=PICTURE, blob="b", media_type="image/png", size_bytes=3, width=8, height=8, lifetime_us=10**12
                )
                await job_store.commit_own(picture, "default")
            return Side(
                job_store=job_store, metrics=metrics, broker=broker, queue=queue, leadership=leadership, running=running
            )

        yield make


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def nothing_with(nats: Side) -> None:
    """NATS has no message any more."""

    async def empty() -> bool:
        return not await nats.broker.sent()

    await until(empty)


async def test_a_job_from_the_log_to_a_worker_and_back(side: MakeSide) -> None:
    server, worker = await side(dispatches=True), await side()
    name = await server.create("j1")
    attempt = await worker.take()
    assert (attempt.job.name, attempt.number) == (name, 1)
    assert await server.state(name) == (State.RUNNING, 1)
    await asyncio.sleep(2 * ACK_WAIT.total_seconds())  # the lease is renewed
    assert await server.broker.sent() == {name}
    await worker.end(attempt)
    await nothing_with(server)
    assert await server.state(name) == (State.SUCCEEDED, 1)


async def test_what_is_handed_back_goes_to_the_next_worker_at_once_and_counts_as_no_loss(side: MakeSide) -> None:
    server, first = await side(dispatches=True), await side()
    name = await server.create("j1")
    attempt = await first.take()
    await first.job_store.move(attempt.move(Move.HAND_BACK))
    await first.queue.release(attempt)
    await first.stall()
    second = await side()
    attempt = await second.take(alone=False)
    assert (attempt.job.name, attempt.number, attempt.worker_deaths, attempt.job.attempt) == (name, 2, 0, 1)


async def test_a_worker_that_is_not_heard_of_loses_its_job_and_can_say_nothing_more(side: MakeSide) -> None:
    server, first = await side(dispatches=True), await side()
    name = await server.create("j1")
    stale = await first.take()
    lease = first.queue._leases[name]
    await first.stall()
    second = await side()
    attempt = await second.take()
    assert (attempt.number, attempt.worker_deaths) == (2, 1)
    for move in (Move.FIX, Move.FAIL, Move.HAND_BACK):
        with pytest.raises(FailedPrecondition) as refused:
            await first.job_store.move(stale.move(move))
        assert refused.value.reason == "ATTEMPT_OVER"
    # It wakes up, and NATS takes its acknowledgement for the new holder's: the job is sent again, and who is given it
    # hears that it is held.
    await lease.message.ack()
    third = await side()

    async def sent_again() -> bool:
        return await server.broker.sent() == {name}

    await until(sent_again)
    for _ in range(30):
        assert await third.queue.take(alone=True) is None
        await asyncio.sleep(0.05)
    assert await server.state(name) == (State.RUNNING, 2)
    await second.end(attempt)

    async def gone() -> bool:
        row = await third.queue.take(alone=True)
        if row is not None:  # given to the third one in the moment before the end: to be published once more
            assert row["state"] == State.PUBLISHING
            await third.queue.release(attempt)
        return not await server.broker.sent()

    await until(gone)
    assert await server.state(name) == (State.SUCCEEDED, 2)


async def test_what_has_lost_a_worker_is_given_to_one_that_has_nothing_else(side: MakeSide) -> None:
    server, first = await side(dispatches=True, max_worker_deaths=2), await side(max_worker_deaths=2)
    name = await server.create("j1")
    await first.take()
    await first.stall()
    second = await side(max_worker_deaths=2)

    async def lost() -> bool:
        return await server.state(name) == (State.QUEUED, 1)

    await second.queue.take(alone=False)
    await until(lost)
    assert await second.queue.take(alone=False) is None
    attempt = await second.take(alone=True)
    assert attempt.number == 2
    # The second worker is lost too, which is one too many.
    await second.stall()
    third = await side(max_worker_deaths=2)
    other = await server.create("j2")
    assert (await third.take()).job.name == other

    async def failed() -> bool:
        assert await third.queue.take(alone=False) is None  # a worker with a place asks again and again
        return await server.state(name) == (State.FAILED, 2)

    await until(failed)
    row, _ = await server.job_store.row(name)
    assert "2 workers have died" in job_of(row, "").error.message


async def test_who_is_cancelled_while_it_waits_is_trained_by_nobody(side: MakeSide) -> None:
    server = await side(dispatches=True)
    name = await server.create("j1")

    async def sent() -> bool:
        return await server.broker.sent() == {name}

    await until(sent)
    await server.job_store.move(MoveJob(name=name, move=Move.CANCEL))
    worker = await side()
    other = await server.create("j2")
    assert (await worker.take()).job.name == other
    assert await server.broker.sent() == {other}


async def test_who_is_retried_before_its_worker_knows_of_the_cancel_is_trained_anew(side: MakeSide) -> None:
    server, worker = await side(dispatches=True), await side()
    name = await server.create("j1")
    attempt = await worker.take()
    for move in (Move.CANCEL, Move.RETRY):
        await server.job_store.move(MoveJob(name=name, move=move))
    with pytest.raises(FailedPrecondition):
        await worker.job_store.move(attempt.move(Move.FIX))
    await worker.queue.release(attempt)
    again = await worker.take()
    assert (again.job.name, again.number) == (name, 2)
    await worker.end(again)
    assert await server.state(name) == (State.SUCCEEDED, 2)


async def test_a_side_that_is_told_to_end_ends_whatever_it_is_at(side: MakeSide) -> None:
    server = await side(dispatches=True)
    await server.stall()
    leadership = Leadership(server.broker, "other", LEASE)
    dispatcher = Dispatcher(server.broker, server.job_store, leadership, server.metrics, ahead=4)
    for index in range(100):
        running = asyncio.create_task(dispatcher.run())
        await asyncio.sleep(index * 1e-4)
        server.job_store.events.wake()
        running.cancel()
        await asyncio.wait({running}, timeout=30)
        assert running.cancelled(), index


async def test_few_jobs_are_with_nats_so_that_who_is_next_is_decided_late(side: MakeSide) -> None:
    server = await side(dispatches=True, ahead=2)
    many = [await server.create(f"many{index}", "many") for index in range(6)]

    async def two_sent() -> bool:
        return await server.broker.sent() == set(many[:2])

    await until(two_sent)
    few = await server.create("few", "few")
    worker = await side()
    order = []
    for _ in range(7):
        attempt = await worker.take()
        order.append(attempt.job.name)
        await worker.end(attempt)
    assert order.index(few) == 2
    assert [name for name in order if name != few] == many


async def test_nats_that_begins_anew_without_its_store_costs_nothing(
    side: MakeSide, nats: Nats, tmp_path: Path
) -> None:
    server, worker = await side(dispatches=True), await side()
    held = await server.create("held")
    attempt = await worker.take()
    waiting = await server.create("waiting")
    nats.kill()
    (tmp_path / "nats" / "store").rename(tmp_path / "lost")
    nats.start()
    other = await side()
    assert (await other.take()).job.name == waiting
    await asyncio.sleep(ACK_WAIT.total_seconds())
    # Its message was sent again too, and nobody took it from the worker that has it.
    assert await server.state(held) == (State.RUNNING, 1)
    await worker.end(attempt)
    assert await server.state(held) == (State.SUCCEEDED, 1)


async def test_one_dispatcher_at_a_time_and_another_when_it_is_gone(side: MakeSide) -> None:
    first = await side(dispatches=True)

    async def first_leads() -> bool:
        return first.leadership.held

    await until(first_leads)
    second = await side(dispatches=True)
    await asyncio.sleep(2 * LEASE.total_seconds())
    assert (first.leadership.held, second.leadership.held) == (True, False)
    await ended(first.running)

    async def second_leads() -> bool:
        return second.leadership.held

    await until(second_leads)
    await second.create("j1")
    worker = await side()
    assert (await worker.take()).number == 1


async def test_progress_is_heard_of_the_attempt_that_has_the_job_only(side: MakeSide) -> None:
    server, worker = await side(dispatches=True), await side()
    name = await server.create("j1")
    attempt = await worker.take()
    preview = resources_pb2.JobEvent.Preview(step=1, png=b"p" * 10)
    steps = set()

    async def seen() -> bool:
        for number, step in ((attempt.number, 1), (attempt.number + 1, 7)):
            worker.job_store.events.report(name, number, resources_pb2.Progress(step=step, steps=9))
        worker.job_store.events.report(name, attempt.number, preview)
        progress = server.job_store.events.progress(name)
        steps.update([] if progress is None else [progress.step])
        return server.job_store.events.preview(name) == preview and bool(steps)

    await until(seen)
    assert steps == {1}


async def test_workers_hear_who_wants_to_see_a_job(side: MakeSide) -> None:
    server, worker = await side(dispatches=True), await side()
    name = await server.create("j1")
    await worker.take()

    async def wanted() -> bool:
        return worker.job_store.events.previews.intervals() == {name: 2.5}

    with server.job_store.events.previews.wanted(name, 2.5):
        await until(wanted)


async def test_a_full_worker_is_asked_to_make_room_for_a_tenant_that_has_none(side: MakeSide) -> None:
    server, worker = await side(dispatches=True), await side()
    for name in ("many1", "many2", "many3"):
        await server.create(name, "many")
    held = [await worker.take(), await worker.take()]  # as many as it has places
    few = await server.create("few", "few")
    asked: list[str] = []

    async def made_room() -> bool:
        row = await worker.queue.next()
        asked.extend([] if row is None else [row["name"]])
        return bool(asked)

    await until(made_room)
    assert asked == [few]
    newest = held[-1]
    await worker.job_store.move(newest.move(Move.HAND_BACK))
    await worker.queue.release(newest)
    names = [(await worker.take()).job.name for _ in range(2)]
    assert few in names
