"""A tiny servicer on a real server, to test what rpc/ does around it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pseudoword.trainer.v1 import resources_pb2, trainer_pb2, trainer_pb2_grpc

from rpc.errors import Unavailable
from rpc.identity import Role, current_principal
from rpc.server import Server
from rpc.settings import ServerSettings
from rpc.storage_errors import STORAGE
from rpc.validate import Violations
from storage.errors import StoreUnavailable

SERVICE = "pseudoword.trainer.v1.TrainerService"


class Toy(trainer_pb2_grpc.TrainerServiceServicer):
    """GetPicture fails as the requested name says; WatchJob streams an event for each true value in `steps`."""

    def __init__(self) -> None:
        self.steps: asyncio.Queue[bool] = asyncio.Queue()
        self.watching = asyncio.Event()
        self.closed = asyncio.Event()

    async def GetPicture(self, request: Any, context: Any) -> Any:
        match request.name:
            case "invalid":
                found = Violations()
                found.number("job.steps", 100_001, 1, 100_000)
                found.text("job.concept", "a\x07b", 64)
                found.raise_if_any()
            case "later":
                raise Unavailable("busy", reason="QUEUE_FULL", retry_after=timedelta(seconds=2.5))
            case "store":
                raise StoreUnavailable("no answer from the store", store="s3")
            case "bug":
                raise RuntimeError("secret detail")
        current_principal().require(request.name.split("/")[1], Role.WRITER)
        return resources_pb2.Picture(name=request.name)

    async def UploadPicture(self, requests: Any, context: Any) -> Any:
        parts = [request async for request in requests]
        return resources_pb2.Picture(name=f"{len(parts)} parts for {current_principal().caller.name}")

    async def WatchJob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.watching.set()
        try:
            while await self.steps.get():
                yield trainer_pb2.WatchJobResponse()
        finally:
            self.closed.set()


async def health(channel: grpc.aio.Channel, *names: str) -> list[int]:
    """The status of each name: 1 is SERVING, 2 is NOT_SERVING."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return [(await stub.Check(health_pb2.HealthCheckRequest(service=name))).status for name in names]


class Running:
    """A server with the toy, and its stubs."""

    def __init__(self, server: Server, toy: Toy, stack: AsyncExitStack) -> None:
        self.server, self.toy, self._stack = server, toy, stack

    async def stub(self, channel: grpc.aio.Channel | None = None) -> Any:
        opened = channel or grpc.aio.insecure_channel(self.server.address)
        await self._stack.enter_async_context(opened)
        return trainer_pb2_grpc.TrainerServiceStub(opened)

    async def channel(self) -> grpc.aio.Channel:
        return await self._stack.enter_async_context(grpc.aio.insecure_channel(self.server.address))


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Returns when `holds()` is true; fails after ten seconds."""
    async with asyncio.timeout(10):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


Serve = Callable[..., Awaitable[Running]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Running:
            given = ServerSettings(**{"listen": "127.0.0.1:0", "metrics_listen": "", "drain_s": 10, **settings})
            server = await stack.enter_async_context(Server(given, name="toy", table=STORAGE))
            toy = Toy()  # type: ignore[abstract]
            server.add(trainer_pb2_grpc.add_TrainerServiceServicer_to_server, toy, SERVICE)
            await server.start()
            return Running(server, toy, stack)

        yield start


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    rows = {
        "shop": ('["shop"]', '["writer"]'),
        "viewer": ('["shop"]', '["reader"]'),
        "root": ('["*"]', '["admin"]'),
        "generation": ('["*"]', '["writer", "delegate"]'),
    }
    path.write_text("".join(token_entry(name, *row) for name, row in rows.items()))
    return path


def token_entry(name: str, tenants: str, roles: str) -> str:
    digest = hashlib.sha256(f"{name}-token".encode()).hexdigest()
    return f'[[token]]\nsha256 = "{digest}"\nname = "{name}"\ntenants = {tenants}\nroles = {roles}\n'
