"""A trainer process that is killed and stopped while it trains and publishes."""

import re
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pseudoword.channel import Endpoints
from pseudoword.client import Client
from pseudoword.errors import PseudowordError
from pseudoword.trainer.v1 import trainer_pb2
from pseudoword.trainer.v1.resources_pb2 import Job, Recipe

from storage.ledger.log import IDENTITY_FRESH_S
from tests.fork_server import ForkServer
from tests.processes import Process
from tests.trainer.conftest import REX
from tests.trainer.stalled_registry import StalledRegistry

MOMENT_S = 30.0
Serve = Callable[..., Process]


@pytest.fixture
def serve(tmp_path: Path, fork_server: ForkServer) -> Iterator[Serve]:
    """serve(registry address, settings...) makes a trainer that is not started yet; all share one store."""
    made: list[Process] = []

    def make(registry: str, *settings: str) -> Process:
        store = ["--store.address", str(tmp_path / "jobs"), "--registry.address", registry, "--model.threads", "1"]
        store.append("--no-evaluation.after-publishing")
        made.append(Process("trainer", tmp_path, *store, *settings, fork_server=fork_server))
        return made[-1]

    yield make
    for process in made:
        process.__exit__()


def client_of(trainer: Process, registry: Process) -> Client:
    return Client(Endpoints(trainer=trainer.address, registry=registry.address))


def create(client: Client, concept: str, steps: int, **more: Any) -> Job:
    return client.create_job(concept, REX[:2], recipe=Recipe(steps=steps, rows=1), **more)


def wait_for(client: Client, name: str, state: "Job.State.ValueType", *, step: int = 0) -> Job:
    """Waits until the job is in `state` and has made `step` steps."""
    end = time.monotonic() + MOMENT_S
    while time.monotonic() < end:
        job = client.trainer.GetJob(trainer_pb2.GetJobRequest(name=name))
        if job.state == state and job.progress.step >= step:
            return job
        time.sleep(0.02)
    raise AssertionError(f"{name} is not {Job.State.Name(state)} after {MOMENT_S:g} s but {job}")


def ended(client: Client, name: str) -> Job:
    """The job as in the last event of its watch."""
    *_, last = client.watch_job(name)
    return last.job


@pytest.mark.timeout(400)  # three starts of a trainer
def test_job_that_kills_its_workers_fails_alone(serve: Serve, registry: Process) -> None:
    trainer = serve(registry.address, "--max-losses", "2")
    trainer.start()
    with client_of(trainer, registry) as client:
        doomed = create(client, "killed", 10_000)
        other = create(client, "killed", 60)
        for job in (doomed, other):
            wait_for(client, job.name, Job.STATE_RUNNING, step=2)
    trainer.kill()

    trainer.start()
    with client_of(trainer, registry) as client:
        # A job whose worker died is trained alone, so the other job does not run with it again.
        assert wait_for(client, doomed.name, Job.STATE_RUNNING, step=2).attempt == 2
    trainer.kill()

    trainer.start()
    with client_of(trainer, registry) as client:
        job = ended(client, other.name)
        assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 2)
        job = ended(client, doomed.name)
        assert (job.state, job.attempt) == (Job.STATE_FAILED, 2)
        assert "2 workers have died" in job.error.message
        assert len(list(client.versions("killed"))) == 1


def rows_trained(trainer: Process) -> float:
    """The number of rows that a trainer has trained since its start."""
    with urllib.request.urlopen(f"http://{trainer.metrics_address}/metrics") as answer:
        (line,) = re.findall(rb"^pseudoword_trainer_rows_total (.*)$", answer.read(), re.MULTILINE)
    return float(line)


@pytest.mark.timeout(400)  # three starts of a trainer
def test_killed_or_stopped_job_resumes_to_equal_vectors(serve: Serve, registry: Process) -> None:
    """Equal to the last bit to those of an undisturbed job."""
    settings = ["--engine.checkpoint-every", "PT0.2S", "--server.metrics-listen", "127.0.0.1:0"]
    steps, first, second = 80, 30, 50
    trainer = serve(registry.address, *settings)
    trainer.start()
    with client_of(trainer, registry) as client:
        undisturbed = ended(client, create(client, "resumed", steps).name)
        assert rows_trained(trainer) == steps
        job = create(client, "resumed", steps)
        wait_for(client, job.name, Job.STATE_RUNNING, step=first)
    trainer.kill()
    trainer.start()
    with client_of(trainer, registry) as client:
        wait_for(client, job.name, Job.STATE_RUNNING, step=second)
        assert rows_trained(trainer) < second  # it did not start from step 0
    trainer.signal(signal.SIGINT)
    assert trainer.wait() == 0
    trainer.start()
    with client_of(trainer, registry) as client:
        job = ended(client, job.name)
        assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 2)  # the attempt that was handed back does not count
        assert rows_trained(trainer) <= steps - second
        whole, broken = (client.version(done.version) for done in (undisturbed, job))
        assert whole.tensors_digest == broken.tensors_digest
        assert list(whole.provenance.loss_curve) == list(broken.provenance.loss_curve)
        assert [version.number for version in client.versions("resumed")] == [2, 1]


def test_trainer_killed_between_commit_and_response_publishes_once(serve: Serve, registry: Process) -> None:
    stalled = StalledRegistry(registry.address, "PublishVersion")
    try:
        trainer = serve(stalled.address)
        trainer.start()
        with client_of(trainer, registry) as client:
            job = create(client, "once", 3)
            assert stalled.arrived.wait(MOMENT_S)
            assert wait_for(client, job.name, Job.STATE_PUBLISHING).version == ""
        trainer.kill()
    finally:
        stalled.close()

    again = serve(registry.address)
    again.start()
    with client_of(again, registry) as client:
        job = ended(client, job.name)
        assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 1)
        (version,) = client.versions("once")
        assert version.name == job.version
        assert client.version(version.name).provenance.job == job.name


def test_trainer_killed_before_publishing_publishes_without_training_again(serve: Serve, registry: Process) -> None:
    trainer = serve("127.0.0.1:1")
    trainer.start()
    with client_of(trainer, registry) as client:
        job = create(client, "late", 3)
        losses = wait_for(client, job.name, Job.STATE_PUBLISHING).progress.smoothed_loss
    trainer.kill()

    again = serve(registry.address)
    again.start()
    with client_of(again, registry) as client:
        job = ended(client, job.name)
        # No training again: attempt and progress are unchanged.
        assert (job.state, job.attempt, job.progress.smoothed_loss) == (Job.STATE_SUCCEEDED, 1, losses)
        assert len(list(client.versions("late"))) == 1


def test_trainer_ends_when_its_store_is_replaced(serve: Serve, registry: Process, tmp_path: Path) -> None:
    """Also while a job runs. The job is not handed back: its log is lost."""
    trainer = serve(registry.address)
    trainer.start()
    with client_of(trainer, registry) as client:
        job = create(client, "lost", 10_000)
        wait_for(client, job.name, Job.STATE_RUNNING, step=1)
        shutil.rmtree(tmp_path / "jobs" / "log")
        (tmp_path / "jobs" / "store.json").unlink()
        time.sleep(2 * IDENTITY_FRESH_S)  # the identity of the store is checked at this interval
        with pytest.raises(PseudowordError) as refused:  # the trainer may end before it responds
            create(client, "lost", 1)
    assert (refused.value.code.name, refused.value.reason or "STORE_REPLACED") == ("UNAVAILABLE", "STORE_REPLACED")
    assert trainer.wait() == 2
    assert "the store was replaced" in trainer.log_end()
