"""How jobs end: they are cancelled, fail, are retried, are handed back, or are published late."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from pseudoword.registry.v1 import registry_pb2
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1 import trainer_pb2
from pseudoword.trainer.v1.resources_pb2 import Job

from tests.trainer.conftest import ONE_AT_A_TIME, REX, Running, refusal, refusal_of, states
from tests.trainer.conftest import Start as StartTrainer


async def test_internal_errors_of_the_registry_fail_the_job_after_publish_tries(
    start: StartTrainer, words: Any
) -> None:
    calls = 0

    async def broken(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        nonlocal calls
        calls += 1
        await context.abort(grpc.StatusCode.INTERNAL, "the catalogue is broken")

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


async def test_running_and_queued_jobs_can_be_cancelled(start: StartTrainer, words: Any) -> None:
    trainer = await start(engine=ONE_AT_A_TIME)
    request = await trainer.job("withdrawn", steps=10_000)
    running, waiting = await trainer.create(request), await trainer.create(request)
    await trainer.reaches(running.name, Job.STATE_RUNNING, step=1)

    cancelled = await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=waiting.name))
    assert (cancelled.state, cancelled.attempt) == (Job.STATE_CANCELLED, 0)
    cancelled = await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=running.name, request_id="once"))
    assert cancelled.state == Job.STATE_CANCELLED
    again = await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=running.name, request_id="once"))
    assert again.state == Job.STATE_CANCELLED

    # The device is free for the next job, long before 10,000 steps are done.
    after = await trainer.create(await trainer.job("withdrawn"))
    assert states(await trainer.watch(after.name))[-1] == "SUCCEEDED"
    listed = await words.ListVersions(registry_pb2.ListVersionsRequest(parent="tenants/default/concepts/withdrawn"))
    assert len(listed.versions) == 1
    for name in (running.name, waiting.name, after.name):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=name))
        assert (refused.value.code(), refusal(refused.value).reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "JOB_STATE",
        )


async def test_cancelled_job_can_be_retried(trainer: Running) -> None:
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


async def test_cancel_with_an_old_etag_is_aborted(trainer: Running) -> None:
    created = await trainer.create(await trainer.job(steps=10_000))
    await trainer.reaches(created.name, Job.STATE_RUNNING)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=created.name, etag=created.etag))
    assert (refused.value.code(), refusal(refused.value).reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    etag = (await trainer.get(created.name)).etag
    await trainer.stub.CancelJob(trainer_pb2.CancelJobRequest(name=created.name, etag=etag))


async def test_failed_job_shows_its_error_and_can_be_retried(start: StartTrainer, tmp_path: Path) -> None:
    trainer = await start(engine=ONE_AT_A_TIME)
    # Damaged bytes in the store do not match the digest of the blob.
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


async def test_refusal_of_the_registry_fails_the_job(trainer: Running, words: Any) -> None:
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


async def test_publishing_waits_for_an_unavailable_registry_while_other_jobs_train(
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


async def test_stopped_server_hands_its_job_back_without_counting_the_attempt(start: StartTrainer) -> None:
    trainer = await start()
    created = await trainer.create(await trainer.job(steps=10_000))
    await trainer.reaches(created.name, Job.STATE_RUNNING, step=1)
    trainer = await start()
    await trainer.reaches(created.name, Job.STATE_RUNNING, step=1)
    assert (await trainer.get(created.name)).attempt == 1  # the attempt that was handed back does not count


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
