"""Servers and workers of one trainer as separate processes with a real NATS between them: killed, stopped and cut off
in each state of a job."""

import re
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pseudoword.channel import Endpoints
from pseudoword.client import Client
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1 import trainer_pb2
from pseudoword.trainer.v1.resources_pb2 import Job, Recipe, Start

from tests.fork_server import ForkServer
from tests.processes import Process
from tests.trainer.conftest import REX
from tests.trainer.nats import Nats

pytestmark = pytest.mark.timeout(400)  # on a busy machine

MOMENT_S = 120.0
STEPS = 24
UNREACHABLE = "127.0.0.1:1"


class Cluster:
    """The processes of one trainer on one store."""

    def __init__(self, folder: Path, registry: Process, nats: Nats, fork_server: ForkServer, stack: ExitStack) -> None:
        self.nats = nats
        self._folder = folder
        self._registry = registry
        self._fork_server = fork_server
        self._stack = stack
        self._workers: list[Process] = []
        self._count = 0

    def server(self) -> Process:
        """A new server, without a worker in it."""
        return self._start("server", [], self._registry.address, [])

    def worker(self, *settings: str, registry: str | None = None) -> Process:
        worker = self._start("worker", ["worker"], registry or self._registry.address, list(settings))
        self._workers.append(worker)
        return worker

    def kill_workers(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def client(self, server: Process) -> Client:
        endpoints = Endpoints(trainer=server.address, registry=self._registry.address)
        return self._stack.enter_context(Client(endpoints))

    def _start(self, name: str, command: list[str], registry: str, settings: list[str]) -> Process:
        self._count += 1
        arguments = [
            *command,
            *("--store.address", str(self._folder / "jobs"), "--registry.address", registry, "--model.threads", "1"),
            *("--queue.kind", "jetstream", "--nats.servers", self.nats.url, "--queue.ack-wait", "PT2S"),
            *("--queue.dispatcher-lease", "PT2S", "--engine.checkpoint-every", "PT0.2S"),
            *("--no-evaluation.after-publishing", *settings),
        ]
        process = Process(
            "trainer", self._folder, *arguments, name=f"{name}-{self._count}", fork_server=self._fork_server
        )
        self._stack.callback(process.__exit__)
        process.start()
        return process


@pytest.fixture(scope="module")
def cluster(
    nats_binary: Path, fork_server: ForkServer, registry: Process, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "nats").mkdir()
    nats = Nats(nats_binary, folder / "nats")
    with ExitStack() as stack:
        stack.callback(nats.kill)
        nats.start()
        yield Cluster(folder, registry, nats, fork_server, stack)


@pytest.fixture(autouse=True)
def no_workers(cluster: Cluster) -> Iterator[None]:
    """Each test begins without workers."""
    cluster.kill_workers()
    yield
    cluster.kill_workers()


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Process:
    return cluster.server()


@pytest.fixture(scope="module")
def client(cluster: Cluster, server: Process) -> Client:
    return cluster.client(server)


@pytest.fixture(scope="module")
def unbroken(cluster: Cluster, client: Client) -> registry_resources.Version:
    """What an undisturbed job of `create` learns."""
    worker = cluster.worker()
    job = succeeded(client, create(client, "unbroken"))
    worker.kill()
    return client.version(job.version)


def create(client: Client, concept: str, steps: int = STEPS, start: Start | None = None) -> str:
    return client.create_job(concept, REX[:2], recipe=Recipe(steps=steps, rows=1), start=start).name


def get(client: Client, name: str) -> Job:
    job: Job = client.trainer.GetJob(trainer_pb2.GetJobRequest(name=name))
    return job


def until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + MOMENT_S
    while not holds():
        assert time.monotonic() < end, f"after {MOMENT_S:g} s not yet: {what}"
        time.sleep(0.05)


def reaches(client: Client, name: str, state: "Job.State.ValueType", *, step: int = 0, attempt: int = 0) -> None:
    """Waits until the job is in `state` and has made `step` steps, in `attempt` or a later attempt."""

    def reached() -> bool:
        job = get(client, name)
        return job.state == state and job.progress.step >= step and job.attempt >= attempt

    until(reached, f"{name} is {Job.State.Name(state)} at step {step} of attempt {attempt}")


def ended(client: Client, name: str) -> Job:
    *_, last = client.watch_job(name)
    return last.job


def succeeded(client: Client, name: str) -> Job:
    """Waits for the job, which must succeed and publish exactly one version."""
    job = ended(client, name)
    assert job.state == Job.STATE_SUCCEEDED, job.error
    versions = [client.version(version.name) for version in client.versions(job.concept.rsplit("/", 1)[1])]
    assert [version.name for version in versions if version.provenance.job == name] == [job.version]
    return job


def ends(worker: Process) -> dict[str, float]:
    """How the attempts of a worker have ended, from its metrics."""
    with urllib.request.urlopen(f"http://{worker.metrics_address}/metrics") as answer:
        found = re.findall(r'^pseudoword_trainer_jobs_ended_total\{how="(\w+)"\} (\S+)$', answer.read().decode(), re.M)
    return {how: float(count) for how, count in found}


def test_jobs_in_every_state_survive_a_killed_worker(
    cluster: Cluster, client: Client, unbroken: registry_resources.Version
) -> None:
    # An unreachable registry holds one job before its first step, and another job after its last step.
    first = cluster.worker("--engine.max-running", "2", registry=UNREACHABLE)
    publishing = create(client, "publishing", steps=3)
    reaches(client, publishing, Job.STATE_PUBLISHING)
    preparing = create(client, "preparing", steps=3, start=Start(version=unbroken.name))
    reaches(client, preparing, Job.STATE_RUNNING)
    training = create(client, "training")
    reaches(client, training, Job.STATE_RUNNING, step=10)
    queued = create(client, "queued", steps=3)
    first.kill()
    assert get(client, queued).state == Job.STATE_QUEUED
    assert get(client, preparing).progress.step == 0

    cluster.worker()
    attempts = {name: succeeded(client, name).attempt for name in (publishing, preparing, training, queued)}
    assert attempts == {publishing: 1, preparing: 2, training: 2, queued: 1}
    version = client.version(get(client, training).version)
    assert version.tensors_digest == unbroken.tensors_digest
    assert list(version.provenance.loss_curve) == list(unbroken.provenance.loss_curve)


def test_worker_that_wakes_up_after_its_lease_changes_nothing(
    cluster: Cluster, client: Client, unbroken: registry_resources.Version
) -> None:
    first = cluster.worker()
    job = create(client, "stalled")
    reaches(client, job, Job.STATE_RUNNING, step=3)
    first.signal(signal.SIGSTOP)
    second = cluster.worker()
    reaches(client, job, Job.STATE_RUNNING, attempt=2)
    first.signal(signal.SIGCONT)  # while the other worker trains
    done = succeeded(client, job)
    assert done.attempt == 2
    assert client.version(done.version).tensors_digest == unbroken.tensors_digest
    until(lambda: ends(first) == {"lost": 1}, "the first worker has noticed the loss of the job")
    assert ends(second) == {"published": 1}
    second.kill()
    # It takes jobs again.
    assert succeeded(client, create(client, "stalled", steps=3)).attempt == 1
    assert get(client, job).etag == done.etag


def test_training_goes_on_while_nats_is_down(cluster: Cluster, client: Client) -> None:
    worker = cluster.worker()
    running = create(client, "outage", steps=40)
    reaches(client, running, Job.STATE_RUNNING, step=3)
    cluster.nats.kill()
    created = create(client, "outage", steps=3)  # creating needs the log only
    step = get_step(worker)
    until(lambda: get_step(worker) > step + 2, "training goes on")
    assert get(client, created).state == Job.STATE_QUEUED
    cluster.nats.start()
    for name in (created, running):
        assert succeeded(client, name).attempt == 1
    assert ends(worker) == {"published": 2}


def test_stopped_worker_hands_its_job_to_another_worker(
    cluster: Cluster, client: Client, unbroken: registry_resources.Version
) -> None:
    first, second = cluster.worker(), cluster.worker()
    job = create(client, "stopped")
    reaches(client, job, Job.STATE_RUNNING, step=3)
    (trainer,) = (worker for worker in (first, second) if get_step(worker))
    trainer.signal(signal.SIGTERM)
    done = succeeded(client, job)
    assert done.attempt == 1  # the attempt that was handed back does not count
    assert client.version(done.version).tensors_digest == unbroken.tensors_digest
    (other,) = {first, second} - {trainer}
    assert ends(other) == {"published": 1}


def test_worker_stops_training_a_cancelled_job(cluster: Cluster, client: Client) -> None:
    worker = cluster.worker()
    job = create(client, "cancelled", steps=10_000)
    reaches(client, job, Job.STATE_RUNNING, step=2)
    assert client.cancel_job(job).state == Job.STATE_CANCELLED
    until(lambda: ends(worker) == {"cancelled": 1}, "the worker has detached from the job")
    step = get_step(worker)
    time.sleep(0.5)
    assert get_step(worker) <= step + 1  # the tick that was running
    assert get(client, job).version == ""


def test_job_that_kills_its_workers_fails_and_other_jobs_go_on(cluster: Cluster, client: Client) -> None:
    doomed = create(client, "poison", steps=10_000)
    other = create(client, "poison", steps=20)
    for attempt in (1, 2):
        worker = cluster.worker("--max-losses", "2")
        reaches(client, doomed, Job.STATE_RUNNING, step=2, attempt=attempt)
        worker.kill()
    cluster.worker("--max-losses", "2")
    assert succeeded(client, other).attempt <= 2
    job = ended(client, doomed)
    assert (job.state, job.attempt) == (Job.STATE_FAILED, 2)
    assert "2 workers have died" in job.error.message


def test_evaluation_of_a_killed_worker_is_made_once_by_another_worker(
    cluster: Cluster, client: Client, unbroken: registry_resources.Version
) -> None:
    first = cluster.worker()
    evaluation = client.create_evaluation(unbroken.name, REX[2:]).name
    reaches(client, evaluation, Job.STATE_RUNNING, step=3)
    first.kill()
    cluster.worker()
    job = ended(client, evaluation)
    assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 2), job.error
    (written,) = client.evaluations(unbroken.name)
    assert written.name == job.evaluation
    assert set(written.metrics) == {"held_out_loss", "clip_i", "clip_t"}


def test_another_server_dispatches_when_the_dispatcher_is_killed(
    cluster: Cluster, client: Client, server: Process
) -> None:
    other = cluster.server()
    cluster.worker()
    assert (server.metric("pseudoword_trainer_dispatches"), other.metric("pseudoword_trainer_dispatches")) == (1, 0)
    job = create(client, "dispatched", steps=3)
    server.kill()
    client = cluster.client(other)
    assert succeeded(client, job).attempt == 1
    assert succeeded(client, create(client, "dispatched", steps=3)).attempt == 1
    assert other.metric("pseudoword_trainer_dispatches") == 1


def get_step(worker: Process) -> float:
    """The number of steps that a worker has made since its start, of all jobs."""
    return worker.metric("pseudoword_trainer_step_seconds_count")
