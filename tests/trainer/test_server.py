"""Words learned over gRPC, and permissions of tokens."""

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
from pseudoword.registry.v1 import registry_pb2
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1 import resources_pb2, trainer_pb2
from pseudoword.trainer.v1.resources_pb2 import Example, Job, Recipe, Start

from rpc.settings import SettingsError
from storage.tensors import read_tensors
from tests.conftest import Minio
from tests.trainer.conftest import REX, Running, encoded, fields, refusal, refusal_of, settings_of, states
from tests.trainer.conftest import Start as StartTrainer
from trainer.app import Trainer


async def test_job_publishes_a_version_with_its_provenance(trainer: Running, words: Any) -> None:
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


async def test_trainer_keeps_jobs_and_pictures_on_minio(start: StartTrainer, minio: Minio, tmp_path: Path) -> None:
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


async def test_metrics_count_jobs_steps_and_pictures(trainer: Running) -> None:
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
    for _ in range(200):  # the watch may end just before the job is counted
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


async def test_equal_jobs_give_equal_vectors(trainer: Running, words: Any) -> None:
    request = await trainer.job("twin")
    versions = []
    for seed in (0, 0, 1):
        request.seed = seed
        job = (await trainer.watch((await trainer.create(request)).name))[-1].job
        versions.append(await words.GetVersion(registry_pb2.GetVersionRequest(name=job.version)))
    assert [version.number for version in versions] == [1, 2, 3]
    first, again, other = (version.tensors_digest for version in versions)
    assert first == again != other


async def test_style_job_uses_the_style_recipe(trainer: Running, words: Any) -> None:
    request = await trainer.job("mara", kind=registry_resources.CONCEPT_KIND_STYLE)
    job = (await trainer.watch((await trainer.create(request)).name))[-1].job
    assert (job.recipe.name, job.start.learned) == ("style", True)
    concept = await words.GetConcept(registry_pb2.GetConceptRequest(name=job.concept))
    assert concept.kind == registry_resources.CONCEPT_KIND_STYLE


async def test_face_job_uses_the_face_recipe_and_a_word_as_start(trainer: Running, words: Any) -> None:
    request = await trainer.job("ann", kind=registry_resources.CONCEPT_KIND_FACE)
    job = (await trainer.watch((await trainer.create(request)).name))[-1].job
    assert (job.recipe.name, job.start.words) == ("face", "toy")  # the miniature's vocabulary has no face
    concept = await words.GetConcept(registry_pb2.GetConceptRequest(name=job.concept))
    assert concept.kind == registry_resources.CONCEPT_KIND_FACE


async def test_recipe_fields_are_written_into_the_provenance(trainer: Running, words: Any) -> None:
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
    # The word that was chosen.
    assert written["start"]["best_of_vocabulary"] is True
    assert written["start"]["chosen"].isalpha()


async def test_job_starts_from_an_existing_version(trainer: Running, words: Any) -> None:
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


async def test_mask_changes_what_is_learned_and_must_fit_its_picture(trainer: Running, words: Any) -> None:
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


async def test_captions_change_what_is_learned(trainer: Running, words: Any) -> None:
    digests = []
    for caption in ("", "a photo of a {} on the grass"):
        request = await trainer.job("captioned")
        for example in request.examples:
            example.caption = caption
        job = (await trainer.watch((await trainer.create(request)).name))[-1].job
        version = await words.GetVersion(registry_pb2.GetVersionRequest(name=job.version))
        digests.append(version.tensors_digest)
    assert digests[0] != digests[1]


async def test_watch_streams_steps_and_states_in_order(trainer: Running) -> None:
    created = await trainer.create(await trainer.job(steps=6))
    events = await trainer.watch(created.name)
    steps = [event.progress.step for event in events if event.WhichOneof("event") == "progress"]
    assert steps == sorted(set(steps))
    order = ["QUEUED", "RUNNING", "PUBLISHING", "SUCCEEDED"]
    assert [state for state in order if state in states(events)] == states(events)
    assert all(event.event_time.seconds for event in events)
    # The watch of an ended job is one message.
    assert [event.job.name for event in await trainer.watch(created.name)] == [created.name]


async def test_cancelled_watch_does_not_end_the_job(trainer: Running) -> None:
    created = await trainer.create(await trainer.job(steps=5))
    watch = trainer.stub.WatchJob(trainer_pb2.WatchJobRequest(name=created.name))
    await watch.read()
    watch.cancel()
    assert states(await trainer.watch(created.name))[-1] == "SUCCEEDED"


async def test_watch_streams_previews_at_the_requested_interval(trainer: Running) -> None:
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


async def test_long_job_makes_room_for_another_tenant_and_resumes(start: StartTrainer) -> None:
    """Both places hold jobs of 10,000 steps: the newer job is handed back, and resumes later from its checkpoint."""
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


async def test_second_trainer_on_one_store_does_not_start(start: StartTrainer, tmp_path: Path, model: Any) -> None:
    await start()
    with pytest.raises(SettingsError, match="another process uses"):
        async with Trainer(settings_of(tmp_path, "127.0.0.1:1"), model):
            pass


async def test_recipes_and_base_model_are_listed(trainer: Running) -> None:
    answer = await trainer.stub.ListRecipes(trainer_pb2.ListRecipesRequest())
    assert [recipe.name for recipe in answer.recipes] == ["face", "object", "style"]
    for recipe in answer.recipes:
        unset = [f.name for f in recipe.DESCRIPTOR.fields if f.has_presence and not recipe.HasField(f.name)]
        assert unset == []
    model = await trainer.stub.GetBaseModel(trainer_pb2.GetBaseModelRequest())
    assert (model.base_model.family, model.resolution) == ("miniature", 64)


async def test_tokens_limit_tenants_and_roles(start: StartTrainer, tmp_path: Path) -> None:
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


def test_adjacent_philox_keys_give_uncorrelated_draws() -> None:
    """The engine relies on it."""
    draws = [np.random.Generator(np.random.Philox(key=[0, row])).standard_normal(1000) for row in range(4)]
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 0.15
