"""Evaluations: their figures, when they run, and that each is written exactly once."""

import asyncio
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from pseudoword.channel import Endpoints
from pseudoword.client import Client
from pseudoword.errors import PseudowordError
from pseudoword.registry.v1 import registry_pb2
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1 import trainer_pb2
from pseudoword.trainer.v1.resources_pb2 import Example, Job, Recipe, Start
from safetensors.numpy import save
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from diffusion.checkpoint import BaseModel
from miniature.paint import paint
from miniature.world import Drawing, random_colour, withheld_toy
from rpc.settings import SettingsError
from tests.fork_server import ForkServer
from tests.processes import Process
from tests.trainer.conftest import REX, Running, encoded, fields, refusal, settings_of, states
from tests.trainer.conftest import Start as StartTrainer
from tests.trainer.stalled_registry import StalledRegistry
from trainer.app import Trainer

ON = {"after_publishing": True}
FIGURES = {"held_out_loss", "clip_i", "clip_t"}


async def examples(trainer: Running, pictures: Sequence[bytes]) -> list[Example]:
    return [Example(picture=(await trainer.upload(data)).name) for data in pictures]


async def evaluate(trainer: Running, version: str, pictures: Sequence[bytes], **more: Any) -> Job:
    """Creates an evaluation job."""
    return await trainer.create(Job(evaluates=version, examples=await examples(trainer, pictures), **more))


async def ended(trainer: Running, name: str) -> Job:
    return (await trainer.watch(name))[-1].job


async def learned(trainer: Running, word: str, **more: Any) -> Job:
    """Runs a training job until it has succeeded."""
    job = await ended(trainer, (await trainer.create(await trainer.job(word, **more))).name)
    assert job.state == Job.STATE_SUCCEEDED, job.error
    return job


async def figures(words: Any, job: Job) -> registry_resources.Evaluation:
    """The evaluation that a succeeded job has written."""
    assert job.state == Job.STATE_SUCCEEDED, job.error
    evaluation = await words.GetEvaluation(registry_pb2.GetEvaluationRequest(name=job.evaluation))
    assert all(math.isfinite(value) for value in evaluation.metrics.values())
    found: registry_resources.Evaluation = evaluation
    return found


def another_toy(count: int) -> list[bytes]:
    """Drawings of a toy other than rex."""
    rng = np.random.default_rng(5)
    toy = withheld_toy(rng)
    return [encoded(paint(Drawing(toy=toy, background=random_colour(rng, "grey")), rng)) for _ in range(count)]


async def test_published_word_is_evaluated_before_its_pictures_expire(start: StartTrainer, words: Any) -> None:
    trainer = await start(evaluation=ON, pictures={"after_success": "PT0S"})
    done = await learned(trainer, "followed")
    assert done.evaluation_job == f"{done.name}-evaluation"
    picture = done.examples[0].picture
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.stub.DeletePicture(trainer_pb2.DeletePictureRequest(name=picture))
    assert (refusal(refused.value).reason, refusal(refused.value).metadata["job"]) == (
        "PICTURE_IN_USE",
        done.evaluation_job,
    )
    kept = await trainer.stub.GetPicture(trainer_pb2.GetPictureRequest(name=picture))
    assert kept.expire_time.ToDatetime().timestamp() > time.time()

    events = await trainer.watch(done.evaluation_job)
    steps = [event.progress.step for event in events if event.WhichOneof("event") == "progress"]
    assert steps == sorted(set(steps))
    assert len(steps) > 1
    job = events[-1].job
    assert (job.evaluates, job.concept, job.priority, job.creator) == (done.version, done.concept, -9, done.creator)
    assert (job.progress.step, job.evaluation_job, job.version) == (job.progress.steps, "", "")
    metrics = trainer.trainer.server.metrics
    assert metrics.get_sample_value("pseudoword_trainer_slice_seconds_count") == job.progress.steps
    assert metrics.get_sample_value("pseudoword_trainer_step_seconds_count") == done.progress.steps
    evaluation = await figures(words, job)
    assert set(evaluation.metrics) == FIGURES
    assert evaluation.name == f"{done.version}/evaluations/{job.name.rsplit('/', 1)[1]}"
    assert (evaluation.samples, evaluation.seed, evaluation.creator) == (2 + 8, 0, done.creator)
    assert evaluation.evaluator.startswith("pseudoword ")
    assert "clip " in evaluation.evaluator

    after = await trainer.stub.GetPicture(trainer_pb2.GetPictureRequest(name=picture))
    assert after.expire_time.ToDatetime().timestamp() <= time.time() + 1
    trainer = await start()  # deletes expired pictures
    for _ in range(200):
        try:
            await trainer.stub.GetPicture(trainer_pb2.GetPictureRequest(name=picture))
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{picture} still exists")


async def test_figures_are_better_for_the_learned_concept(start: StartTrainer, words: Any) -> None:
    trainer = await start(evaluation=ON)
    usual = await learned(
        trainer, "usual", start=Start(words="toy"), recipe=Recipe(steps=1, rows=1, learning_rate=1e-9)
    )
    rex = await learned(trainer, "known", recipe=Recipe(steps=6, rows=4))
    before, after = [await figures(words, await ended(trainer, job.evaluation_job)) for job in (usual, rex)]
    # Equal pictures and draws; the learned start alone is far better than the word.
    assert after.metrics["clip_i"] > before.metrics["clip_i"] + 0.1
    assert after.metrics["held_out_loss"] < before.metrics["held_out_loss"]

    own, other = [
        await figures(words, await ended(trainer, (await evaluate(trainer, rex.version, pictures)).name))
        for pictures in (REX[2:], another_toy(2))
    ]
    # Held-out pictures of the same toy, and pictures of another toy.
    assert own.metrics["clip_i"] > other.metrics["clip_i"] + 0.1
    assert own.metrics["held_out_loss"] != after.metrics["held_out_loss"]
    listed = await words.ListEvaluations(registry_pb2.ListEvaluationsRequest(parent=rex.version))
    assert [one.name for one in listed.evaluations] == [other.name, own.name, after.name]
    request = trainer_pb2.ListJobsRequest(parent="tenants/default", filter="NOT evaluates:versions")
    assert {job.name for job in (await trainer.stub.ListJobs(request)).jobs} == {usual.name, rex.name}


async def test_evaluation_request_gets_defaults_and_invalid_fields_are_named(trainer: Running, words: Any) -> None:
    style = await learned(trainer, "asked", kind=registry_resources.CONCEPT_KIND_STYLE, vectors=2)
    filled = await trainer.create(
        Job(evaluates=style.version, examples=await examples(trainer, REX[:1])), validate_only=True
    )
    assert (filled.concept, filled.kind, filled.vectors) == (style.concept, style.kind, 2)
    assert (filled.recipe, filled.priority) == (Recipe(name="style"), -1)
    assert filled.base_model == style.base_model

    foreign = await words.ImportVersion(
        registry_pb2.ImportVersionRequest(
            parent="tenants/default/concepts/foreign",
            data=save({"a": np.ones((1, 768), np.float32)}),
            create_concept=True,
        )
    )
    picture = await examples(trainer, REX[:1])
    for change, field in (
        ({"evaluates": "asked@1"}, "job.evaluates"),
        ({"evaluates": "tenants/shop/concepts/asked/versions/1"}, "job.evaluates"),
        ({"evaluates": "tenants/default/concepts/asked/versions/99"}, "job.evaluates"),
        ({"evaluates": "tenants/default/concepts/nobody/versions/1"}, "job.evaluates"),
        ({"evaluates": foreign.name}, "job.evaluates"),
        ({"concept": "tenants/default/concepts/other"}, "job.concept"),
        ({"examples": []}, "job.examples"),
        ({"examples": [Example(picture="rex.png")]}, "job.examples[0].picture"),
        ({"examples": [Example(picture=picture[0].picture, caption="no hole")]}, "job.examples[0].caption"),
        ({"start": Start(words="toy")}, "job.start"),
        ({"recipe": Recipe(steps=3)}, "job.recipe"),
        ({"vectors": 1}, "job.vectors"),
        ({"word_at_once": True}, "job.word_at_once"),
        ({"description": "x"}, "job.description"),
        ({"labels": {"team": "shop"}}, "job.labels"),
        ({"kind": 77}, "job.kind"),
        ({"seed": -1}, "job.seed"),
        ({"priority": 1}, "job.priority"),
        ({"priority": -10}, "job.priority"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await trainer.create(Job(**({"evaluates": style.version, "examples": picture} | change)))
        assert fields(refused.value) == {field}, change


@pytest.mark.parametrize("places", [16, 1])
async def test_training_job_runs_before_a_running_evaluation(start: StartTrainer, words: Any, places: int) -> None:
    trainer = await start(engine={"max_running": places})
    version = (await learned(trainer, "evaluated", steps=1)).version
    waiting = (await evaluate(trainer, version, REX[:1], seed=3)).name
    await trainer.reaches(waiting, Job.STATE_RUNNING, step=2)
    job = await learned(trainer, "urgent", steps=12)
    # With one place, the evaluation was handed back, and may run again by now.
    assert (await trainer.get(waiting)).state in ({Job.STATE_RUNNING} | ({Job.STATE_QUEUED} if places == 1 else set()))
    found = await ended(trainer, waiting)
    # Attempts that were handed back do not count.
    assert found.attempt == 1
    assert found.end_time.ToNanoseconds() > job.end_time.ToNanoseconds()
    assert (await figures(words, found)).seed == 3


async def test_evaluation_can_be_cancelled_resumes_after_a_stop_and_fails_without_its_version(
    start: StartTrainer, words: Any
) -> None:
    trainer = await start(engine={"max_running": 1})
    version = (await learned(trainer, "brief", steps=1)).version
    cancelled = await evaluate(trainer, version, REX[:1])
    await trainer.reaches(cancelled.name, Job.STATE_RUNNING, step=2)
    await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=cancelled.name))
    assert states(await trainer.watch(cancelled.name)) == ["CANCELLED"]

    stopped = await evaluate(trainer, version, REX[:1])
    await trainer.reaches(stopped.name, Job.STATE_RUNNING, step=2)
    trainer = await start(engine={"max_running": 1})
    job = await ended(trainer, stopped.name)
    assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 1)
    listed = await words.ListEvaluations(registry_pb2.ListEvaluationsRequest(parent=version))
    assert [one.name for one in listed.evaluations] == [job.evaluation]

    # A training job holds the device until the version is deleted.
    long = await trainer.create(await trainer.job("long", steps=10_000))
    await trainer.reaches(long.name, Job.STATE_RUNNING, step=1)
    orphan = await evaluate(trainer, version, REX[:1])
    await words.DeleteConcept(registry_pb2.DeleteConceptRequest(name=orphan.concept))
    await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=long.name))
    job = await ended(trainer, orphan.name)
    assert job.state == Job.STATE_FAILED
    assert PseudowordError.from_status(job.error).reason.startswith("CONCEPT_")
    await learned(trainer, "undisturbed", steps=1)


async def test_dino_judge_adds_its_figure_and_needs_safetensors(
    start: StartTrainer, words: Any, tmp_path: Path, model: BaseModel
) -> None:
    folder = tmp_path / "tiny"
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    size = {"height": 28, "width": 28}
    BitImageProcessor(size={"shortest_edge": 28}, crop_size=size).save_pretrained(folder)
    trainer = await start(evaluation={"dino": str(folder)})
    version = (await learned(trainer, "judged", steps=1)).version
    evaluation = await figures(words, await ended(trainer, (await evaluate(trainer, version, REX[:2])).name))
    assert set(evaluation.metrics) == FIGURES | {"dino"}
    assert -1 <= evaluation.metrics["dino"] <= 1
    assert "dino tiny " in evaluation.evaluator

    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for judge in ("dino", "clip"):
        settings = settings_of(tmp_path / judge, "127.0.0.1:1", evaluation={judge: str(folder)})
        with pytest.raises(SettingsError, match=f"evaluation.{judge}: .*model.safetensors"):
            async with Trainer(settings, model):
                pass


@pytest.mark.timeout(400)  # three starts of a trainer
def test_evaluation_is_written_once_when_the_trainer_is_killed_evaluating_and_publishing(
    tmp_path: Path, registry: Process, fork_server: ForkServer
) -> None:
    def trainer(registry: str) -> Process:
        settings = ["--store.address", str(tmp_path / "jobs"), "--registry.address", registry, "--model.threads", "1"]
        return Process("trainer", tmp_path, *settings, fork_server=fork_server)

    def get(client: Client, name: str) -> Job:
        job: Job = client.trainer.GetJob(trainer_pb2.GetJobRequest(name=name))
        return job

    def wait_for(client: Client, name: str, step: int) -> None:
        end = time.monotonic() + 120
        while not ((job := get(client, name)).state == Job.STATE_RUNNING and job.progress.step >= step):
            assert time.monotonic() < end, job
            time.sleep(0.02)

    stalled = StalledRegistry(registry.address, "CreateEvaluation")
    first, second, third = (trainer(address) for address in (stalled.address, stalled.address, registry.address))
    try:
        first.start()
        with Client(Endpoints(trainer=first.address, registry=registry.address)) as client:
            learning = client.create_job("surviving", REX[:2], recipe=Recipe(steps=2, rows=1))
            *_, last = client.watch_job(learning.name)
            name = last.job.evaluation_job
            wait_for(client, name, 3)
        first.kill()
        second.start()
        with Client(Endpoints(trainer=second.address, registry=registry.address)) as client:
            assert stalled.arrived.wait(120)
            assert get(client, name).state == Job.STATE_PUBLISHING
            assert get(client, name).evaluation == ""
        second.kill()
        third.start()
        with Client(Endpoints(trainer=third.address, registry=registry.address)) as client:
            *_, last = client.watch_job(name)
            # The fixed figures were not computed again.
            assert (last.job.state, last.job.attempt) == (Job.STATE_SUCCEEDED, 2)
            (evaluation,) = client.evaluations(last.job.evaluates)
            assert evaluation.name == last.job.evaluation
            assert set(evaluation.metrics) == FIGURES
    finally:
        for process in (first, second, third):
            process.__exit__()
        stalled.close()
