"""The queue in NATS: a real nats-server, and several servers and workers on one log in this process."""

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
class Peer:
    """A server or a worker: its part in the queue."""

    job_store: JobStore
    metrics: TrainerMetrics
    broker: Broker
    queue: JetStreamQueue
    leadership: Leadership
    # The task of the dispatcher (a server) or of the queue (a worker).
    running: asyncio.Task[None]

    async def stall(self) -> None:
        """Stops all its tasks, as if the process had stopped; NATS gets no message from it."""
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
        """Waits for the next job."""
        found: list[Any] = []

        async def came() -> bool:
            row = await self.queue.take(alone=alone)
            found.extend([] if row is None else [row])
            return bool(found)

        await until(came)
        (row,) = found
        return Attempt(row=row)

    async def end(self, attempt: Attempt) -> None:
        """Ends the job as a worker does it."""
        for move in (Move.FIX, Move.FINISH):
            await self.job_store.move(attempt.move(move))
        await self.queue.release(attempt)


StartPeer = Callable[..., Awaitable[Peer]]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(3_000):
        if await holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the condition did not hold within a minute")


@pytest.fixture
def nats(nats_binary: Path, tmp_path: Path) -> Iterator[Nats]:
    (tmp_path / "nats").mkdir()
    server = Nats(nats_binary, tmp_path / "nats")
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def start_peer(tmp_path: Path, nats: Nats) -> AsyncIterator[StartPeer]:
    """Starts a worker, or with `dispatches` a server that hands jobs out while it leads."""
    number = itertools.count()
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel("127.0.0.1:1"))

        async def make(*, dispatches: bool = False, max_worker_deaths: int = 3, ahead: int = 4) -> Peer:
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
            return Peer(
                job_store=job_store, metrics=metrics, broker=broker, queue=queue, leadership=leadership, running=running
            )

        yield make


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def nats_is_empty(peer: Peer) -> None:
    """Waits until NATS has no message of a job."""

    async def empty() -> bool:
        return not await peer.broker.sent()

    await until(empty)


async def test_a_created_job_reaches_a_worker_and_leaves_nats_when_it_ends(start_peer: StartPeer) -> None:
    server, worker = await start_peer(dispatches=True), await start_peer()
    name = await server.create("j1")
    attempt = await worker.take()
    assert (attempt.job.name, attempt.number) == (name, 1)
    assert await server.state(name) == (State.RUNNING, 1)
    await asyncio.sleep(2 * ACK_WAIT.total_seconds())  # the lease is renewed
    assert await server.broker.sent() == {name}
    await worker.end(attempt)
    await nats_is_empty(server)
    assert await server.state(name) == (State.SUCCEEDED, 1)


async def test_handed_back_job_goes_to_the_next_worker_and_counts_no_worker_death(start_peer: StartPeer) -> None:
    server, first = await start_peer(dispatches=True), await start_peer()
    name = await server.create("j1")
    attempt = await first.take()
    await first.job_store.move(attempt.move(Move.HAND_BACK))
    await first.queue.release(attempt)
    await first.stall()
    second = await start_peer()
    attempt = await second.take(alone=False)
    assert (attempt.job.name, attempt.number, attempt.worker_deaths, attempt.job.attempt) == (name, 2, 0, 1)


async def test_silent_worker_loses_its_job_and_its_moves_are_refused(start_peer: StartPeer) -> None:
    server, first = await start_peer(dispatches=True), await start_peer()
    name = await server.create("j1")
    stale = await first.take()
    lease = first.queue._leases[name]
    await first.stall()
    second = await start_peer()
    attempt = await second.take()
    assert (attempt.number, attempt.worker_deaths) == (2, 1)
    for move in (Move.FIX, Move.FAIL, Move.HAND_BACK):
        with pytest.raises(FailedPrecondition) as refused:
            await first.job_store.move(stale.move(move))
        assert refused.value.reason == "ATTEMPT_OVER"
    # The first worker wakes up, and NATS takes its acknowledgement for the second worker's. The job is sent again, and
    # a worker that gets the message finds that another worker holds the job.
    await lease.message.ack()
    third = await start_peer()

    async def sent_again() -> bool:
        return await server.broker.sent() == {name}

    await until(sent_again)
    for _ in range(30):
        assert await third.queue.take(alone=True) is None
        await asyncio.sleep(0.05)
    assert await server.state(name) == (State.RUNNING, 2)
    await second.end(attempt)

    async def ended_everywhere() -> bool:
        row = await third.queue.take(alone=True)
        if row is not None:  # sent to the third worker just before the end, to be published again
            assert row["state"] == State.PUBLISHING
            await third.queue.release(attempt)
        return not await server.broker.sent()

    await until(ended_everywhere)
    assert await server.state(name) == (State.SUCCEEDED, 2)


async def test_job_whose_worker_died_is_given_to_an_idle_worker_only(start_peer: StartPeer) -> None:
    server, first = await start_peer(dispatches=True, max_worker_deaths=2), await start_peer(max_worker_deaths=2)
    name = await server.create("j1")
    await first.take()
    await first.stall()
    second = await start_peer(max_worker_deaths=2)

    async def lost() -> bool:
        return await server.state(name) == (State.QUEUED, 1)

    await second.queue.take(alone=False)
    await until(lost)
    assert await second.queue.take(alone=False) is None
    attempt = await second.take(alone=True)
    assert attempt.number == 2
    # The second worker dies too, which exceeds max_worker_deaths.
    await second.stall()
    third = await start_peer(max_worker_deaths=2)
    other = await server.create("j2")
    assert (await third.take()).job.name == other

    async def failed() -> bool:
        assert await third.queue.take(alone=False) is None  # a worker with a free place keeps asking
        return await server.state(name) == (State.FAILED, 2)

    await until(failed)
    row, _ = await server.job_store.row(name)
    assert "2 workers have died" in job_of(row, "").error.message


async def test_job_cancelled_in_the_queue_is_given_to_no_worker(start_peer: StartPeer) -> None:
    server = await start_peer(dispatches=True)
    name = await server.create("j1")

    async def sent() -> bool:
        return await server.broker.sent() == {name}

    await until(sent)
    await server.job_store.move(MoveJob(name=name, move=Move.CANCEL))
    worker = await start_peer()
    other = await server.create("j2")
    assert (await worker.take()).job.name == other
    assert await server.broker.sent() == {other}


async def test_retry_after_cancel_restarts_job_before_worker_notices(start_peer: StartPeer) -> None:
    server, worker = await start_peer(dispatches=True), await start_peer()
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


async def test_dispatcher_can_be_cancelled_at_any_moment(start_peer: StartPeer) -> None:
    server = await start_peer(dispatches=True)
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


async def test_few_jobs_are_sent_ahead_so_that_a_new_tenant_is_served_early(start_peer: StartPeer) -> None:
    server = await start_peer(dispatches=True, ahead=2)
    many = [await server.create(f"many{index}", "many") for index in range(6)]

    async def two_sent() -> bool:
        return await server.broker.sent() == set(many[:2])

    await until(two_sent)
    few = await server.create("few", "few")
    worker = await start_peer()
    order = []
    for _ in range(7):
        attempt = await worker.take()
        order.append(attempt.job.name)
        await worker.end(attempt)
    assert order.index(few) == 2
    assert [name for name in order if name != few] == many


async def test_nats_restart_without_its_store_loses_no_job(start_peer: StartPeer, nats: Nats, tmp_path: Path) -> None:
    server, worker = await start_peer(dispatches=True), await start_peer()
    held = await server.create("held")
    attempt = await worker.take()
    waiting = await server.create("waiting")
    nats.kill()
    (tmp_path / "nats" / "store").rename(tmp_path / "lost")
    nats.start()
    other = await start_peer()
    assert (await other.take()).job.name == waiting
    await asyncio.sleep(ACK_WAIT.total_seconds())
    # Its message was sent again too, and its worker has kept the job.
    assert await server.state(held) == (State.RUNNING, 1)
    await worker.end(attempt)
    assert await server.state(held) == (State.SUCCEEDED, 1)


async def test_another_dispatcher_leads_after_the_first_has_ended(start_peer: StartPeer) -> None:
    first = await start_peer(dispatches=True)

    async def first_leads() -> bool:
        return first.leadership.held

    await until(first_leads)
    second = await start_peer(dispatches=True)
    await asyncio.sleep(2 * LEASE.total_seconds())
    assert (first.leadership.held, second.leadership.held) == (True, False)
    await ended(first.running)

    async def second_leads() -> bool:
        return second.leadership.held

    await until(second_leads)
    await second.create("j1")
    worker = await start_peer()
    assert (await worker.take()).number == 1


async def test_progress_of_another_attempt_is_ignored(start_peer: StartPeer) -> None:
    server, worker = await start_peer(dispatches=True), await start_peer()
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


async def test_workers_learn_which_previews_are_wanted(start_peer: StartPeer) -> None:
    server, worker = await start_peer(dispatches=True), await start_peer()
    name = await server.create("j1")
    await worker.take()

    async def wanted() -> bool:
        return worker.job_store.events.previews.intervals() == {name: 2.5}

    with server.job_store.events.previews.wanted(name, 2.5):
        await until(wanted)


async def test_a_full_worker_is_asked_to_make_room_for_a_tenant_without_a_running_job(start_peer: StartPeer) -> None:
    server, worker = await start_peer(dispatches=True), await start_peer()
    for name in ("many1", "many2", "many3"):
        await server.create(name, "many")
    held = [await worker.take(), await worker.take()]  # all its places
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
