"""Requests to the trainer: what is accepted, and errors that name every invalid field."""

from typing import Any

import grpc
import pytest
from pseudoword.trainer.v1 import trainer_pb2
from pseudoword.trainer.v1.resources_pb2 import Example, Job, Recipe, Start

from tests.trainer.conftest import ONE_AT_A_TIME, REX, Running, fields, refusal, states
from tests.trainer.conftest import Start as StartTrainer

ABSENT = f"tenants/default/pictures/{'0' * 64}"
BAD_NAMES = ["rex", "tenants/default", "tenants/Default/jobs/j", "tenants/default/jobs/j\n"]


async def test_repeated_request_id_returns_the_same_job(trainer: Running) -> None:
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


async def test_validate_only_creates_no_job(trainer: Running) -> None:
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
async def test_invalid_field_of_a_job_is_named(trainer: Running, change: dict[str, Any], field: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.create(await trainer.job(**change))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(refused.value) == {field}


@pytest.mark.parametrize(
    "caption",
    ["a photo", "a {} and a {}", "a {} with <bo>", "a {} " + "on the beach " * 12, "a {}\x07", "{}" + "x" * 500],
)
async def test_invalid_captions_are_rejected(trainer: Running, caption: str) -> None:
    request = await trainer.job()
    request.examples[1].caption = caption
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.create(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(refused.value) == {"job.examples[1].caption"}


async def test_a_caption_may_have_line_breaks_and_tabs(trainer: Running) -> None:
    request = await trainer.job(steps=1)
    request.examples[1].caption = "\ufeffa photo of {}\r\n\ton the grass\n"
    job = await trainer.create(request)
    assert states(await trainer.watch(job.name))[-1] == "SUCCEEDED"


async def test_all_invalid_fields_are_reported_together(trainer: Running) -> None:
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


async def test_a_job_takes_at_most_32_pictures(trainer: Running) -> None:
    picture = Example(picture=(await trainer.upload(REX[0])).name)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.create(await trainer.job(pictures=0, examples=[picture] * 33))
    assert fields(refused.value) == {"job.examples"}
    job = await trainer.create(await trainer.job(pictures=0, examples=[picture] * 32, steps=1))
    assert states(await trainer.watch(job.name))[-1] == "SUCCEEDED"


async def test_jobs_are_listed_by_filter(start: StartTrainer) -> None:
    trainer = await start(engine=ONE_AT_A_TIME)
    running = await trainer.create(await trainer.job("one", steps=10_000))
    waiting = await trainer.create(await trainer.job("two"))
    ended = await trainer.create(await trainer.job("two"))
    await trainer.reaches(running.name, Job.STATE_RUNNING)
    await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=ended.name))

    async def found(filter: str) -> list[str]:
        request = trainer_pb2.ListJobsRequest(parent="tenants/default", filter=filter)
        return [job.name for job in (await trainer.stub.ListJobs(request)).jobs]

    assert await found("state = RUNNING") == [running.name]
    assert await found("concept:two AND NOT state = CANCELLED") == [waiting.name]
    assert await found('concept = "tenants/default/concepts/two"') == [ended.name, waiting.name]
    assert await found("creator = anonymous AND create_time > 2026-01-01T00:00:00Z") == [
        ended.name,
        waiting.name,
        running.name,
    ]
    assert await found("create_time > 2999-01-01T00:00:00Z") == []
    for wrong in ("state = ASLEEP", "colour = red", "state =", "(" * 99):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await found(wrong)
        assert fields(refused.value) == {"filter"}
    await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=running.name))


async def test_unfinished_jobs_are_limited_for_a_tenant_and_in_total(start: StartTrainer) -> None:
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


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_malformed_names_are_rejected(trainer: Running, name: str) -> None:
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


async def test_unknown_jobs_are_not_found(trainer: Running) -> None:
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


async def test_pages_list_every_job_once_while_jobs_are_created(trainer: Running) -> None:
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
        await trainer.create(await trainer.job(seed=9))  # newer than the first page: not listed
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
