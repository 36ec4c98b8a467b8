"""A trainer in this process, called over gRPC, and a registry in a process of its own."""

import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import torch
from PIL import Image
from pseudoword.errors import PseudowordError
from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub
from pseudoword.trainer.v1 import resources_pb2, trainer_pb2
from pseudoword.trainer.v1.trainer_pb2_grpc import TrainerServiceStub

from diffusion.checkpoint import BaseModel
from tests.processes import Process
from trainer.app import Trainer
from trainer.settings import TrainerSettings

CHUNK_BYTES = 64 * 2**10
ONE_AT_A_TIME = {"max_running": 1}
REX = [path.read_bytes() for path in sorted((Path(__file__).parents[2] / "examples" / "rex").glob("*.png"))]
Events = list[resources_pb2.JobEvent]


class Running:
    """A trainer that runs in this process, and calls of a client."""

    def __init__(self, trainer: Trainer, stub: Any) -> None:
        self.trainer = trainer
        self.stub = stub

    async def upload(self, data: bytes, *, tenant: str = "default", **header: Any) -> resources_pb2.Picture:
        async def messages() -> AsyncIterator[trainer_pb2.UploadPictureRequest]:
            yield trainer_pb2.UploadPictureRequest(
                header=trainer_pb2.UploadPictureRequest.Header(parent=f"tenants/{tenant}", **header)
            )
            for start in range(0, len(data), CHUNK_BYTES):
                yield trainer_pb2.UploadPictureRequest(chunk=data[start : start + CHUNK_BYTES])

        picture: resources_pb2.Picture = await self.stub.UploadPicture(messages())
        return picture

    async def job(self, word: str = "rex", *, steps: int = 3, pictures: int = 2, **more: Any) -> resources_pb2.Job:
        """Uploads pictures. A request for a job of few steps on them; `more` are fields of the Job."""
        names = [(await self.upload(data)).name for data in REX[:pictures]]
        fields: dict[str, Any] = {
            "concept": f"tenants/default/concepts/{word}",
            "examples": [resources_pb2.Example(picture=name) for name in names],
            "recipe": resources_pb2.Recipe(steps=steps, rows=2),
        }
        return resources_pb2.Job(**(fields | more))

    async def create(self, job: resources_pb2.Job, **more: Any) -> resources_pb2.Job:
        request = trainer_pb2.CreateJobRequest(parent="tenants/default", job=job, **more)
        created: resources_pb2.Job = await self.stub.CreateJob(request)
        return created

    async def get(self, name: str) -> resources_pb2.Job:
        job: resources_pb2.Job = await self.stub.GetJob(trainer_pb2.GetJobRequest(name=name))
        return job

    async def watch(self, name: str) -> Events:
        """All events of a watch."""
        return [message.event async for message in self.stub.WatchJob(trainer_pb2.WatchJobRequest(name=name))]

    async def reaches(self, name: str, state: "resources_pb2.Job.State.ValueType", *, step: int = 0) -> None:
        """Waits until a job is in `state` and has made `step` steps; fails if the watch ends earlier."""
        seen = resources_pb2.Job.STATE_UNSPECIFIED
        async for message in self.stub.WatchJob(trainer_pb2.WatchJobRequest(name=name)):
            event = message.event
            progress = event.progress
            if event.WhichOneof("event") == "job":
                seen, progress = event.job.state, event.job.progress
            if seen == state and progress.step >= step:
                return
        raise AssertionError(f"{name} ended and was never {state}")


Start = Callable[..., Awaitable[Running]]


def settings_of(folder: Path, registry: str, **more: Any) -> TrainerSettings:
    """Settings of a trainer with its store in `folder`; `more` are further settings, merged into `server`."""
    server = {"listen": "127.0.0.1:0", "metrics_listen": "", "drain_s": 20, **more.pop("server", {})}
    # Several jobs of a test learn from one upload.
    pictures = {"after_success": "PT1H", **more.pop("pictures", {})}
    evaluation = {"after_publishing": False, **more.pop("evaluation", {})}
    fields = {
        "server": server,
        "store": {"address": str(folder / "jobs")},
        "registry": {"address": registry},
        "pictures": pictures,
        "evaluation": evaluation,
    }
    settings: TrainerSettings = TrainerSettings.model_validate(fields | more)
    return settings


def refusal(error: grpc.aio.AioRpcError) -> PseudowordError:
    """The error that our client reads from a failed call."""
    return PseudowordError.from_call(error)


def fields(error: grpc.aio.AioRpcError) -> set[str]:
    """The invalid fields of a rejected request."""
    return {field for field, _ in refusal(error).violations}


@pytest.fixture(scope="session")
def model() -> BaseModel:
    torch.set_num_threads(1)  # OpenMP's threads spin while they wait, and the machine is shared
    return BaseModel.load(None)


@pytest.fixture(scope="session")
def registry(starts_process: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("registry")
    with Process("registry", folder, "--store.address", str(folder / "store")) as running:
        yield running


@pytest.fixture
async def start(tmp_path: Path, model: BaseModel, registry: Process) -> AsyncIterator[Start]:
    """Each call starts a trainer on one and the same store, and stops the trainer before it as SIGTERM does."""
    async with AsyncExitStack() as last:
        current = [last]

        async def started(**more: Any) -> Running:
            await current[0].aclose()
            current[0] = await last.enter_async_context(AsyncExitStack())
            settings = settings_of(tmp_path, more.pop("registry", registry.address), **more)
            trainer = await current[0].enter_async_context(Trainer(settings, model))
            channel = await current[0].enter_async_context(grpc.aio.insecure_channel(trainer.server.address))
            return Running(trainer, TrainerServiceStub(channel))

        yield started


@pytest.fixture
async def trainer(start: Start) -> Running:
    return await start()


@pytest.fixture
async def words(registry: Process) -> AsyncIterator[Any]:
    """A stub of the registry."""
    async with grpc.aio.insecure_channel(registry.address) as channel:
        yield RegistryServiceStub(channel)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def states(events: Sequence[resources_pb2.JobEvent]) -> list[str]:
    """The states in the events of a watch, in order."""
    jobs = [event.job for event in events if event.WhichOneof("event") == "job"]
    return [resources_pb2.Job.State.Name(job.state).removeprefix("STATE_") for job in jobs]


def refusal_of(job: resources_pb2.Job) -> str:
    """The reason of the error of a failed job."""
    return PseudowordError.from_status(job.error).reason or ""
