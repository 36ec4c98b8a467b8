"""Jobs over gRPC: created, watched, listed, cancelled, retried, and what is refused."""

import asyncio
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from pseudoword.errors import PseudowordError
from pseudoword.registry.v1 import registry_pb2
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1 import resources_pb2, trainer_pb2
from pseudoword.trainer.v1.resources_pb2 import Example, Job, Recipe, Start

from rpc.settings import SettingsError
from storage.tensors import read_tensors
from tests.conftest import Minio
from tests.trainer.conftest import REX, Running, encoded, fields, refusal, settings_of, states
from tests.trainer.conftest import Start as StartTrainer
from trainer.server import Trainer

ONE_AT_A_TIME = {"max_running": 1}
ABSENT = f"tenants/default/pictures/{'0' * 64}"
BAD_NAMES = ["rex", "tenants/default", "tenants/Default/jobs/j", "tenants/default/jobs/j\n"]


async def test_pictures_in_and_a_version_out(trainer: Running, words: Any) -> None:
    request = await trainer.job("rex", description="our dog", labels={"team": "shop"}, vectors=2, seed=7)
    created = await trainer.create(request)
    assert created.state == Job.STATE_QUEUED
    assert created.creator == "anonymous"
    assert created.start.learned
    assert (created.recipe.steps, created.recipe.rows, created.recipe.name) == (3, 2, "object")
    assert created.kind == registry_resources.CONCEPT_KIND_OBJECT

    events = await trainer.watch(created.name)
    assert states(events)[-1] == "SUCCEEDED"
    job = events[-1].job
    assert job.attempt == 1
    assert (job.progress.step, job.progress.steps) == (3, 3)
    assert job.progress.loss > 0
    assert job.end_time.ToNanoseconds() > job.start_time.ToNanoseconds() >= job.create_time.ToNanoseconds()

    version = await words.GetVersion(registry_pb2.GetVersionRequest(name=job.version))
    assert version.description == "our dog"
    assert dict(version.labels) == {"team": "shop"}
    encoder = version.base_model.encoders[0]
    assert (version.base_model.family, encoder.dimensions, encoder.vectors) == ("miniature", 128, 2)
    made = version.provenance
    assert made.origin == registry_resources.Provenance.ORIGIN_LEARNED
    assert (made.job, made.seed, made.steps, made.stop_reason) == (job.name, 7, 3, "steps")
    assert [point.step for point in made.loss_curve] == [1, 2, 3]
    assert list(made.picture_digests) == [hashlib.sha256(data).hexdigest() for data in REX[:2]]
    assert json.loads(made.recipe_json)["steps"] == 3
    assert made.training_time.ToNanoseconds() > 0
    assert {"torch", "diffusers", "pseudoword"} <= set(made.software)
    answer = await words.GetEmbedding(
        registry_pb2.GetEmbeddingRequest(name=job.version, format=registry_pb2.EMBEDDING_FORMAT_NATIVE)
    )
    assert read_tensors(answer.data)["text_encoder"].shape == (2, 128)


async def test_a_store_on_minio(start: StartTrainer, minio: Minio, tmp_path: Path) -> None:
    access = minio.access
    store = {
        "store": {"address": f"s3://{minio.bucket}/trainer", "views": str(tmp_path / "views")},
        "s3": {
            "endpoint": access.endpoint,
            "access_key": access.access_key,
            "secret_key": access.secret_key,
            "secure": False,
        },
    }
    trainer = await start(**store, registry="127.0.0.1:1")
    created = await trainer.create(await trainer.job("bucket"))
    await trainer.reaches(created.name, Job.STATE_PUBLISHING)
    trainer = await start(**store)
    assert states(await trainer.watch(created.name))[-1] == "SUCCEEDED"
    picture = created.examples[0].picture
    await trainer.stub.DeletePicture(trainer_pb2.DeletePictureRequest(name=picture))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.stub.GetPicture(trainer_pb2.GetPictureRequest(name=picture))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_what_prometheus_sees(trainer: Running) -> None:
    created = await trainer.create(await trainer.job(steps=4))
    await trainer.watch(created.name)
    cancelled = await trainer.create(await trainer.job(steps=10_000))
    await trainer.reaches(cancelled.name, Job.STATE_RUNNING, step=1)
    metrics = trainer.trainer.server.metrics
    assert metrics.get_sample_value("pseudoword_trainer_jobs", {"state": "running"}) == 1
    assert metrics.get_sample_value("pseudoword_trainer_jobs", {"state": "queued"}) == 0
    await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=cancelled.name))
    await trainer.watch((await trainer.create(await trainer.job(steps=4))).name)
    wanted = {"published": 2, "cancelled": 1, "failed": None}
    for _ in range(200):  # a watcher may hear of the end a moment before it is counted
        ended = {how: metrics.get_sample_value("pseudoword_trainer_jobs_ended_total", {"how": how}) for how in wanted}
        if ended == wanted:
            break
        await asyncio.sleep(0.02)
    assert ended == wanted
    assert metrics.get_sample_value("pseudoword_trainer_training_seconds_count") == 2
    steps = metrics.get_sample_value("pseudoword_trainer_step_seconds_count")
    assert steps is not None
    assert 9 <= steps < 1000
    assert metrics.get_sample_value("pseudoword_trainer_pictures_total", {"outcome": "taken"}) == 6


async def test_the_same_job_gives_the_same_vectors(trainer: Running, words: Any) -> None:
    request = await trainer.job("twin")
    versions = []
    for seed in (0, 0, 1):
        request.seed = seed
        job = (await trainer.watch((await trainer.create(request)).name))[-1].job
        versions.append(await words.GetVersion(registry_pb2.GetVersionRequest(name=job.version)))
    assert [version.number for version in versions] == [1, 2, 3]
    first, again, other = (version.tensors_digest for version in versions)
    assert first == again != other


async def test_a_style(trainer: Running, words: Any) -> None:
    request = await trainer.job("mara", kind=registry_resources.CONCEPT_KIND_STYLE)
    job = (await trainer.watch((await trainer.create(request)).name))[-1].job
    assert (job.recipe.name, job.start.learned) == ("style", True)
    concept = await words.GetConcept(registry_pb2.GetConceptRequest(name=job.concept))
    assert concept.kind == registry_resources.CONCEPT_KIND_STYLE


async def test_a_face(trainer: Running, words: Any) -> None:
    request = await trainer.job("ann", kind=registry_resources.CONCEPT_KIND_FACE)
    job = (await trainer.watch((await trainer.create(request)).name))[-1].job
    assert (job.recipe.name, job.start.words) == ("face", "toy")  # the miniature's vocabulary has no face
    concept = await words.GetConcept(registry_pb2.GetConceptRequest(name=job.concept))
    assert concept.kind == registry_resources.CONCEPT_KIND_FACE


async def test_a_recipe_of_many_parts(trainer: Running, words: Any) -> None:
    recipe = Recipe(
        steps=4,
        rows=2,
        schedule=Recipe.SCHEDULE_HOLD_THEN_COOL,
        timesteps=Recipe.TIMESTEPS_UNIFORM,
        norm=Recipe.NORM_VOCABULARY,
        first_timestep=100,
        min_snr_gamma=5,
        start_weight=0.1,
        progressive=True,
        early_stopping=True,
    )
    request = await trainer.job("parts", recipe=recipe, vectors=2, start=Start(best_of_vocabulary=True))
    job = (await trainer.watch((await trainer.create(request)).name))[-1].job
    assert job.state == Job.STATE_SUCCEEDED
    assert job.recipe.progressive
    assert job.recipe.early_stopping
    version = await words.GetVersion(registry_pb2.GetVersionRequest(name=job.version))
    written = json.loads(version.provenance.recipe_json)
    assert written["schedule"] == "SCHEDULE_HOLD_THEN_COOL"
    # Which word was the best one.
    assert written["start"]["best_of_vocabulary"] is True
    assert written["start"]["chosen"].isalpha()


async def test_a_version_to_start_from(trainer: Running, words: Any) -> None:
    first = (await trainer.watch((await trainer.create(await trainer.job("old", vectors=2))).name))[-1].job
    recipe = Recipe(steps=1, rows=1, learning_rate=1e-9)
    created = await trainer.create(await trainer.job("new", start=Start(version=first.version), recipe=recipe))
    assert created.vectors == 2
    job = (await trainer.watch(created.name))[-1].job
    version = await words.GetVersion(registry_pb2.GetVersionRequest(name=job.version))
    assert list(version.provenance.parents) == [first.version]
    before, after = [
        read_tensors(
            (
                await words.GetEmbedding(
                    registry_pb2.GetEmbeddingRequest(name=name, format=registry_pb2.EMBEDDING_FORMAT_NATIVE)
                )
            ).data
        )["text_encoder"]
        for name in (first.version, job.version)
    ]
    assert after == pytest.approx(before, abs=1e-6)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.create(await trainer.job("new", start=Start(version=first.version), vectors=3))
    assert fields(refused.value) == {"job.vectors"}


async def test_masks(trainer: Running, words: Any) -> None:
    def half(width: int, height: int) -> bytes:
        mask = Image.new("L", (width, height), 0)
        mask.paste(255, (0, 0, width // 2, height))
        return encoded(mask)

    size = Image.open(io.BytesIO(REX[0])).size
    digests = []
    for mask in (None, half(*size)):
        request = await trainer.job("masked", pictures=1)
        if mask is not None:
            request.examples[0].mask = (await trainer.upload(mask)).name
        job = (await trainer.watch((await trainer.create(request)).name))[-1].job
        version = await words.GetVersion(registry_pb2.GetVersionRequest(name=job.version))
        digests.append(version.tensors_digest)
    assert digests[0] != digests[1]

    request.examples[0].mask = (await trainer.upload(half(40, 30))).name
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.create(request)
    assert (refusal(refused.value).reason, fields(refused.value)) == ("MASK_SHAPE", {"job.examples[0].mask"})
    request.examples[0].mask = (await trainer.upload(encoded(Image.new("L", size, 0)))).name
    job = (await trainer.watch((await trainer.create(request)).name))[-1].job
    assert (job.state, refusal_of(job)) == (Job.STATE_FAILED, "MASK_EMPTY")


def refusal_of(job: Job) -> str:
    """The reason why a job failed."""
    return PseudowordError.from_status(job.error).reason or ""


async def test_captions_are_what_is_learned_from(trainer: Running, words: Any) -> None:
    digests = []
    for caption in ("", "a photo of a {} on the grass"):
        request = await trainer.job("captioned")
        for example in request.examples:
            example.caption = caption
        job = (await trainer.watch((await trainer.create(request)).name))[-1].job
        version = await words.GetVersion(registry_pb2.GetVersionRequest(name=job.version))
        digests.append(version.tensors_digest)
    assert digests[0] != digests[1]


async def test_a_watch_tells_every_step_and_state_that_lasts(trainer: Running) -> None:
    created = await trainer.create(await trainer.job(steps=6))
    events = await trainer.watch(created.name)
    steps = [event.progress.step for event in events if event.WhichOneof("event") == "progress"]
    assert steps == sorted(set(steps))
    order = ["QUEUED", "RUNNING", "PUBLISHING", "SUCCEEDED"]
    assert [state for state in order if state in states(events)] == states(events)
    assert all(event.event_time.seconds for event in events)
    # Of a job that has ended there is one message.
    assert [event.job.name for event in await trainer.watch(created.name)] == [created.name]


async def test_a_watcher_that_goes_away_ends_nothing(trainer: Running) -> None:
    created = await trainer.create(await trainer.job(steps=5))
    watch = trainer.stub.WatchJob(trainer_pb2.WatchJobRequest(name=created.name))
    await watch.read()
    watch.cancel()
    assert states(await trainer.watch(created.name))[-1] == "SUCCEEDED"


async def test_a_request_repeated_is_the_same_job(trainer: Running) -> None:
    request = await trainer.job()
    first = await trainer.create(request, request_id="one")
    again = await trainer.create(request, request_id="one")
    assert again.name == first.name
    await trainer.watch(first.name)
    later = await trainer.create(request, request_id="one")
    assert (later.name, later.state) == (first.name, Job.STATE_SUCCEEDED)
    assert (await trainer.create(request)).name != first.name
    request.seed = 5
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.create(request, request_id="one")
    assert refusal(refused.value).reason == "REQUEST_ID_REUSED"


async def test_validate_only_changes_nothing(trainer: Running) -> None:
    job = await trainer.create(await trainer.job(), validate_only=True)
    assert job.recipe.learning_rate > 0
    answer = await trainer.stub.ListJobs(trainer_pb2.ListJobsRequest(parent="tenants/default"))
    assert list(answer.jobs) == []
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.create(await trainer.job(seed=-1), validate_only=True)
    assert fields(refused.value) == {"job.seed"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"concept": "rex"}, "job.concept"),
        ({"concept": "tenants/default/concepts/Rex"}, "job.concept"),
        ({"concept": "tenants/default/concepts/r\x07"}, "job.concept"),
        ({"concept": f"tenants/default/concepts/{'r' * 64}"}, "job.concept"),
        ({"concept": "tenants/shop/concepts/rex"}, "job.concept"),
        ({"concept": ""}, "job.concept"),
        ({"examples": []}, "job.examples"),
        ({"examples": [Example(picture=f"tenants/default/pictures/{'0' * 64}")]}, "job.examples[0].picture"),
        ({"examples": [Example(picture=f"tenants/shop/pictures/{'0' * 64}")]}, "job.examples[0].picture"),
        ({"examples": [Example(picture="rex.png")]}, "job.examples[0].picture"),
        ({"vectors": 17}, "job.vectors"),
        ({"vectors": -1}, "job.vectors"),
        ({"seed": -1}, "job.seed"),
        ({"priority": 10}, "job.priority"),
        ({"priority": -10}, "job.priority"),
        ({"kind": 77}, "job.kind"),
        ({"start": Start(words="xylophone")}, "job.start.words"),
        ({"start": Start(words="  ")}, "job.start.words"),
        ({"start": Start(encoded_words="xylophone")}, "job.start.encoded_words"),
        ({"start": Start(best_of_vocabulary=False)}, "job.start.best_of_vocabulary"),
        ({"start": Start(version="rex@1")}, "job.start.version"),
        ({"start": Start(version="tenants/shop/concepts/rex/versions/1")}, "job.start.version"),
        ({"start": Start(version="tenants/default/concepts/nobody/versions/1")}, "job.start.version"),
        ({"examples": [Example(picture=ABSENT, mask="rex.png")]}, "job.examples[0].mask"),
        ({"start": Start(words="toy " * 100)}, "job.start.words"),
        ({"recipe": Recipe(steps=0)}, "job.recipe.steps"),
        ({"recipe": Recipe(steps=2**31 - 1)}, "job.recipe.steps"),
        ({"description": "x" * 2001}, "job.description"),
        ({"description": "a\x00b"}, "job.description"),
        ({"labels": {"Team": "shop"}}, "job.labels['Team']"),
        ({"labels": {"team": "x" * 64}}, "job.labels['team']"),
    ],
)
async def test_what_is_wrong_with_a_job_is_named(trainer: Running, change: dict[str, Any], field: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.create(await trainer.job(**change))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(refused.value) == {field}


@pytest.mark.parametrize(
    "caption",
    ["a photo", "a {} and a {}", "a {} with <bo>", "a {} " + "on the beach " * 12, "a {}\x07", "{}" + "x" * 500],
)
async def test_captions_that_cannot_be_learned_from(trainer: Running, caption: str) -> None:
    request = await trainer.job()
    request.examples[1].caption = caption
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.create(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(refused.value) == {"job.examples[1].caption"}


async def test_everything_that_is_wrong_is_told_at_once(trainer: Running) -> None:
    request = await trainer.job(vectors=99, seed=-1, recipe=Recipe(rows=0), priority=50)
    request.examples[0].caption = "rex"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.create(request, request_id="x" * 65)
    assert fields(refused.value) == {
        "job.vectors",
        "job.seed",
        "job.recipe.rows",
        "job.priority",
        "job.examples[0].caption",
        "request_id",
    }


async def test_more_than_32_pictures(trainer: Running) -> None:
    picture = Example(picture=(await trainer.upload(REX[0])).name)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.create(await trainer.job(pictures=0, examples=[picture] * 33))
    assert fields(refused.value) == {"job.examples"}
    job = await trainer.create(await trainer.job(pictures=0, examples=[picture] * 32, steps=1))
    assert states(await trainer.watch(job.name))[-1] == "SUCCEEDED"


async def test_lists_are_filtered(start: StartTrainer) -> None:
    trainer = await start(engine=ONE_AT_A_TIME)
    running = await trainer.create(await trainer.job("one", steps=10_000))
    waiting = await trainer.create(await trainer.job("two"))
    gone = await trainer.create(await trainer.job("two"))
    await trainer.reaches(running.name, Job.STATE_RUNNING)
    await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=gone.name))

    async def found(filter: str) -> list[str]:
        request = trainer_pb2.ListJobsRequest(parent="tenants/default", filter=filter)
        return [job.name for job in (await trainer.stub.ListJobs(request)).jobs]

    assert await found("state = RUNNING") == [running.name]
    assert await found("concept:two AND NOT state = CANCELLED") == [waiting.name]
    assert await found('concept = "tenants/default/concepts/two"') == [gone.name, waiting.name]
    assert await found("creator = anonymous AND create_time > 2026-01-01T00:00:00Z") == [
        gone.name,
        waiting.name,
        running.name,
    ]
    assert await found("create_time > 2999-01-01T00:00:00Z") == []
    for wrong in ("state = ASLEEP", "colour = red", "state =", "(" * 99):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await found(wrong)
        assert fields(refused.value) == {"filter"}
    await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=running.name))


async def test_previews_of_how_far_a_word_is(trainer: Running) -> None:
    created = await trainer.create(await trainer.job("seen", steps=200))
    request = trainer_pb2.WatchJobRequest(name=created.name)
    request.preview_interval.FromSeconds(1)
    previews = []
    async for message in trainer.stub.WatchJob(request):
        if message.event.WhichOneof("event") == "preview":
            previews.append(message.event.preview)
            if len(previews) == 2:
                break
    first, second = previews
    assert 1 <= first.step < second.step
    assert first.prompt == "a photo of a <seen>"
    pictures = [np.asarray(Image.open(io.BytesIO(one.png))) for one in previews]
    assert pictures[0].shape == (64, 64, 3)
    assert not np.array_equal(pictures[0], pictures[1])
    await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=created.name))
    for seconds in (0, 3601):
        request.preview_interval.FromSeconds(seconds)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await trainer.stub.WatchJob(request).read()
        assert fields(refused.value) == {"preview_interval"}


async def test_long_jobs_of_one_tenant_do_not_keep_another_waiting(start: StartTrainer) -> None:
    """Two places, both with jobs that take for ever: the newer one steps back, and goes on later where it was."""
    trainer = await start(engine={"max_running": 2})
    long = [await trainer.create(await trainer.job(steps=10_000)) for _ in range(2)]
    for job in long:
        await trainer.reaches(job.name, Job.STATE_RUNNING, step=2)
    picture = await trainer.upload(REX[0], tenant="shop")
    short = Job(
        concept="tenants/shop/concepts/rex",
        examples=[Example(picture=picture.name)],
        recipe=Recipe(steps=3, rows=1),
    )
    created = await trainer.stub.CreateJob(trainer_pb2.CreateJobRequest(parent="tenants/shop", job=short))
    assert states(await trainer.watch(created.name))[-1] == "SUCCEEDED"
    for job in long:
        await trainer.reaches(job.name, Job.STATE_RUNNING, step=3)
        assert (await trainer.get(job.name)).attempt == 1
        await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=job.name))


async def test_there_is_room_for_so_many_jobs(start: StartTrainer) -> None:
    trainer = await start(engine=ONE_AT_A_TIME, queue={"max_unfinished_per_tenant": 2})
    jobs = [await trainer.create(await trainer.job(steps=10_000)) for _ in range(2)]
    request = await trainer.job()
    for only in (False, True):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await trainer.create(request, validate_only=only)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        error = refusal(refused.value)
        assert (error.reason, error.metadata) == ("TENANT_JOBS", {"unfinished": "2", "limit": "2"})
        assert error.retry_after is not None
    await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=jobs[1].name))
    await trainer.create(request)
    trainer = await start(engine=ONE_AT_A_TIME, queue={"max_unfinished": 2})
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.create(request)
    assert refusal(refused.value).reason == "QUEUE_FULL"
    listed = await trainer.stub.ListJobs(trainer_pb2.ListJobsRequest(parent="tenants/default"))
    for job in listed.jobs:
        if job.state in (Job.STATE_QUEUED, Job.STATE_RUNNING):
            await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=job.name))


async def test_a_registry_that_is_broken_fails_the_job_after_some_attempts(start: StartTrainer, words: Any) -> None:
    calls = 0

    async def broken(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        nonlocal calls
        calls += 1
        await context.abort(grpc.StatusCode.INTERNAL, "the catalogue is upside down")

    server = grpc.aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(broken)
    service = "pseudoword.registry.v1.RegistryService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"PublishVersion": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    trainer = await start(registry=f"127.0.0.1:{port}", publish_tries=3)
    job = (await trainer.watch((await trainer.create(await trainer.job("broken"))).name))[-1].job
    await server.stop(None)
    assert (job.state, refusal_of(job), calls) == (Job.STATE_FAILED, "PUBLISH_FAILED", 3)
    assert "3 attempts" in job.error.message
    trainer = await start()
    await trainer.stub.RetryJob(trainer_pb2.RetryJobRequest(name=job.name))
    assert states(await trainer.watch(job.name))[-1] == "SUCCEEDED"


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_names_are_checked(trainer: Running, name: str) -> None:
    for rpc, request in (
        ("GetJob", trainer_pb2.GetJobRequest),
        ("CancelJob", trainer_pb2.CancelJobRequest),
        ("RetryJob", trainer_pb2.RetryJobRequest),
        ("GetPicture", trainer_pb2.GetPictureRequest),
        ("DeletePicture", trainer_pb2.DeletePictureRequest),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await getattr(trainer.stub, rpc)(request(name=name))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert fields(refused.value) == {"name"}


async def test_jobs_that_are_not_there(trainer: Running) -> None:
    name = "tenants/default/jobs/nobody"
    for call in (
        trainer.get(name),
        trainer.watch(name),
        trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=name)),
        trainer.stub.RetryJob(trainer_pb2.RetryJobRequest(name=name)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert (refused.value.code(), refusal(refused.value).reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")


async def test_cancel_while_it_runs_and_while_it_waits(start: StartTrainer, words: Any) -> None:
    trainer = await start(engine=ONE_AT_A_TIME)
    request = await trainer.job("stopped", steps=10_000)
    running, waiting = await trainer.create(request), await trainer.create(request)
    await trainer.reaches(running.name, Job.STATE_RUNNING, step=1)

    cancelled = await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=waiting.name))
    assert (cancelled.state, cancelled.attempt) == (Job.STATE_CANCELLED, 0)
    cancelled = await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=running.name, request_id="once"))
    assert cancelled.state == Job.STATE_CANCELLED
    again = await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=running.name, request_id="once"))
    assert again.state == Job.STATE_CANCELLED

    # The device is free for the next one, long before 10,000 steps are made.
    after = await trainer.create(await trainer.job("stopped"))
    assert states(await trainer.watch(after.name))[-1] == "SUCCEEDED"
    listed = await words.ListVersions(registry_pb2.ListVersionsRequest(parent="tenants/default/concepts/stopped"))
    assert len(listed.versions) == 1
    for name in (running.name, waiting.name, after.name):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=name))
        assert (refused.value.code(), refusal(refused.value).reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "JOB_STATE",
        )


async def test_a_job_that_was_cancelled_can_be_retried_at_once(trainer: Running) -> None:
    created = await trainer.create(await trainer.job("stopped", steps=30))
    await trainer.reaches(created.name, Job.STATE_RUNNING, step=1)
    await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=created.name))
    queued = await trainer.stub.RetryJob(trainer_pb2.RetryJobRequest(name=created.name))
    assert (queued.state, queued.HasField("end_time")) == (Job.STATE_QUEUED, False)
    done = (await trainer.watch(created.name))[-1].job
    assert (done.state, done.attempt, done.progress.step) == (Job.STATE_SUCCEEDED, 2, 30)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.stub.RetryJob(trainer_pb2.RetryJobRequest(name=created.name))
    assert refusal(refused.value).reason == "JOB_STATE"


async def test_etags_guard_a_cancel(trainer: Running) -> None:
    created = await trainer.create(await trainer.job(steps=10_000))
    await trainer.reaches(created.name, Job.STATE_RUNNING)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=created.name, etag=created.etag))
    assert (refused.value.code(), refusal(refused.value).reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    etag = (await trainer.get(created.name)).etag
    await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=created.name, etag=etag))


async def test_a_job_that_fails_says_why_and_can_be_retried(start: StartTrainer, tmp_path: Path) -> None:
    trainer = await start(engine=ONE_AT_A_TIME)
    # Bytes that rot in the store: the blob's digest tells.
    blocker = await trainer.create(await trainer.job(steps=10_000))
    await trainer.reaches(blocker.name, Job.STATE_RUNNING, step=1)
    created = await trainer.create(await trainer.job("retried"))
    damaged = [path for path in (tmp_path / "jobs" / "t").rglob("*") if path.is_file() and path.read_bytes() == REX[0]]
    assert len(damaged) == 1
    damaged[0].write_bytes(b"rot")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.stub.RetryJob(trainer_pb2.RetryJobRequest(name=created.name))
    assert refusal(refused.value).reason == "JOB_STATE"
    await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=blocker.name))

    failed = (await trainer.watch(created.name))[-1].job
    assert failed.state == Job.STATE_FAILED
    assert failed.error.code == grpc.StatusCode.DATA_LOSS.value[0]
    assert "digest" in failed.error.message

    damaged[0].write_bytes(REX[0])
    queued = await trainer.stub.RetryJob(trainer_pb2.RetryJobRequest(name=created.name))
    assert queued.state == Job.STATE_QUEUED
    assert not queued.HasField("error")
    done = (await trainer.watch(created.name))[-1].job
    assert (done.state, done.attempt) == (Job.STATE_SUCCEEDED, 2)


async def test_what_the_registry_refuses_fails_the_job(trainer: Running, words: Any) -> None:
    name = "tenants/default/concepts/gone"
    await words.CreateConcept(
        registry_pb2.CreateConceptRequest(
            parent="tenants/default", concept_id="gone", concept=registry_resources.Concept()
        )
    )
    await words.DeleteConcept(registry_pb2.DeleteConceptRequest(name=name))
    job = (await trainer.watch((await trainer.create(await trainer.job("gone"))).name))[-1].job
    assert job.state == Job.STATE_FAILED
    assert job.error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]


async def test_publishing_waits_for_a_registry_that_is_away_and_holds_nothing_up(
    start: StartTrainer, registry: Any
) -> None:
    trainer = await start(registry="127.0.0.1:1")
    first = await trainer.create(await trainer.job("patient"))
    second = await trainer.create(await trainer.job("patient", seed=1))
    for job in (first, second):
        await trainer.reaches(job.name, Job.STATE_PUBLISHING)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=first.name))
    assert refusal(refused.value).reason == "JOB_STATE"

    trainer = await start()
    jobs = [(await trainer.watch(job.name))[-1].job for job in (first, second)]
    assert [job.state for job in jobs] == [Job.STATE_SUCCEEDED] * 2
    assert {job.version for job in jobs} == {f"tenants/default/concepts/patient/versions/{n}" for n in (1, 2)}
    assert [job.attempt for job in jobs] == [1, 1]


async def test_a_server_told_to_stop_hands_its_job_back(start: StartTrainer) -> None:
    trainer = await start()
    created = await trainer.create(await trainer.job(steps=10_000))
    await trainer.reaches(created.name, Job.STATE_RUNNING, step=1)
    trainer = await start()
    await trainer.reaches(created.name, Job.STATE_RUNNING, step=1)
    assert (await trainer.get(created.name)).attempt == 1  # the one handed back does not count


async def test_watches_end_when_the_server_stops(start: StartTrainer) -> None:
    trainer = await start(registry="127.0.0.1:1")
    created = await trainer.create(await trainer.job())
    await trainer.reaches(created.name, Job.STATE_PUBLISHING)
    watch = asyncio.create_task(trainer.watch(created.name))
    await asyncio.sleep(0.1)
    await trainer.trainer.server.stop(grace_s=10)
    with pytest.raises(grpc.aio.AioRpcError) as stopped:
        await watch
    assert (stopped.value.code(), refusal(stopped.value).reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")


async def test_a_second_trainer_on_a_store_is_refused(start: StartTrainer, tmp_path: Path, model: Any) -> None:
    await start()
    with pytest.raises(SettingsError, match="another process uses"):
        async with Trainer(settings_of(tmp_path, "127.0.0.1:1"), model):
            pass


async def test_pages_of_jobs(trainer: Running) -> None:
    blocker = await trainer.create(await trainer.job(steps=10_000))
    made = [blocker.name] + [(await trainer.create(await trainer.job(seed=seed))).name for seed in range(4)]
    seen: list[str] = []
    request = trainer_pb2.ListJobsRequest(parent="tenants/default", page_size=2)
    while True:
        page = await trainer.stub.ListJobs(request)
        assert len(page.jobs) <= 2
        assert page.revision
        seen += [job.name for job in page.jobs]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
        await trainer.create(await trainer.job(seed=9))  # newer than where the list is: not in it
    assert seen == made[::-1]
    other = await trainer.stub.ListJobs(trainer_pb2.ListJobsRequest(parent="tenants/shop"))
    assert list(other.jobs) == []
    request.parent = "tenants/shop"
    for wrong in (request, trainer_pb2.ListJobsRequest(parent="tenants/default", page_token="rex")):  # noqa: S106
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await trainer.stub.ListJobs(wrong)
        assert refusal(refused.value).reason == "PAGE_TOKEN_INVALID"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.stub.ListJobs(trainer_pb2.ListJobsRequest(parent="tenants/default", page_size=-1))
    assert fields(refused.value) == {"page_size"}
    await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=blocker.name))


async def test_what_is_offered(trainer: Running) -> None:
    answer = await trainer.stub.ListRecipes(trainer_pb2.ListRecipesRequest())
    assert [recipe.name for recipe in answer.recipes] == ["face", "object", "style"]
    for recipe in answer.recipes:
        unset = [f.name for f in recipe.DESCRIPTOR.fields if f.has_presence and not recipe.HasField(f.name)]
        assert unset == []
    model = await trainer.stub.GetBaseModel(trainer_pb2.GetBaseModelRequest())
    assert (model.base_model.family, model.resolution) == ("miniature", 64)


async def test_tenants_and_roles(start: StartTrainer, tmp_path: Path) -> None:
    entries = {"ann": ("default", "writer"), "bob": ("default", "reader"), "eve": ("shop", "admin")}
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        "\n".join(
            f'[[token]]\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\nname = "{name}"\n'
            f'tenants = ["{tenant}"]\nroles = ["{role}"]\n'
            for name, (tenant, role) in entries.items()
        )
    )
    trainer = await start(server={"token_file": str(tokens)})

    def called(name: str) -> Any:
        return (("authorization", f"Bearer {name}"),)

    async def upload(name: str) -> resources_pb2.Picture:
        messages = [
            trainer_pb2.UploadPictureRequest(header=trainer_pb2.UploadPictureRequest.Header(parent="tenants/default")),
            trainer_pb2.UploadPictureRequest(chunk=REX[0]),
        ]
        return await trainer.stub.UploadPicture(iter(messages), metadata=called(name))  # type: ignore[no-any-return]

    picture = await upload("ann")
    job = Job(concept="tenants/default/concepts/rex", examples=[Example(picture=picture.name)], recipe=Recipe(steps=1))
    create = trainer_pb2.CreateJobRequest(parent="tenants/default", job=job)
    created = await trainer.stub.CreateJob(create, metadata=called("ann"))
    assert created.creator == "ann"
    read = trainer_pb2.GetJobRequest(name=created.name)
    assert (await trainer.stub.GetJob(read, metadata=called("bob"))).name == created.name

    cancel = trainer_pb2.CancelJobRequest(name=created.name)
    listing = trainer_pb2.ListJobsRequest(parent="tenants/default")
    denied = [
        (trainer.stub.CreateJob(create, metadata=called("bob")), "ROLE_DENIED"),
        (trainer.stub.CancelJob(cancel, metadata=called("bob")), "ROLE_DENIED"),
        (upload("bob"), "ROLE_DENIED"),
        (upload("eve"), "TENANT_DENIED"),
        (trainer.stub.GetJob(read, metadata=called("eve")), "TENANT_DENIED"),
        (trainer.stub.ListJobs(listing, metadata=called("eve")), "TENANT_DENIED"),
        (
            trainer.stub.WatchJob(trainer_pb2.WatchJobRequest(name=created.name), metadata=called("eve")).read(),
            "TENANT_DENIED",
        ),
    ]
    for call, reason in denied:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert (refused.value.code(), refusal(refused.value).reason) == (grpc.StatusCode.PERMISSION_DENIED, reason)


def test_seeds_are_told_apart_by_the_generator() -> None:
    """Neighbouring keys of Philox give unrelated draws; the engine relies on it."""
    draws = [np.random.Generator(np.random.Philox(key=[0, row])).standard_normal(1000) for row in range(4)]
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 0.15
