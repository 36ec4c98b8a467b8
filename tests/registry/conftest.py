"""A registry server in this process, called over gRPC."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub

from registry.app import Registry
from registry.settings import RegistrySettings
from tests.conftest import Place


class Running:
    """A registry and a stub for it; `call(token)` is a stub that sends a bearer token."""

    def __init__(self, registry: Registry, stack: AsyncExitStack) -> None:
        self.registry = registry
        self._stack = stack

    async def call(self, token: str = "") -> Any:
        metadata = [("authorization", f"Bearer {token}")] if token else []
        channel = grpc.aio.insecure_channel(self.registry.server.address, interceptors=_interceptors(metadata))
        await self._stack.enter_async_context(channel)
        return RegistryServiceStub(channel)

    async def stop(self) -> None:
        await self._stack.aclose()


Start = Callable[..., Awaitable[Running]]


def settings_of(place: Place, **more: Any) -> RegistrySettings:
    """Settings of a registry on `place`; `more` are further settings, merged into `server` and `store`."""
    access = place.access
    s3: dict[str, Any] = {}
    if access is not None:
        s3 = {"endpoint": access.endpoint, "access_key": access.access_key, "secret_key": access.secret_key}
        s3["secure"] = False
    server = {"listen": "127.0.0.1:0", "metrics_listen": "", "drain_s": 5, **more.pop("server", {})}
    store = {"address": place.address, **more.pop("store", {})}
    return RegistrySettings.model_validate({"server": server, "store": store, "s3": s3, **more})


@pytest.fixture
async def start(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Each call starts a registry on `place`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    async with AsyncExitStack() as all_stacks:

        async def started(**more: Any) -> Running:
            stack = await all_stacks.enter_async_context(AsyncExitStack())
            registry = await stack.enter_async_context(Registry(settings_of(place, **more)))
            return Running(registry, stack)

        yield started


@pytest.fixture
async def running(start: Start) -> Running:
    return await start()


@pytest.fixture
async def stub(running: Running) -> Any:
    """A stub for a registry with an empty store and without permissions."""
    return await running.call()


def _interceptors(metadata: list[tuple[str, str]]) -> list[Any]:
    class Unary(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            given = grpc.aio.Metadata(*(details.metadata or ()), *metadata)
            return await continuation(details._replace(metadata=given), request)

    class Stream(grpc.aio.UnaryStreamClientInterceptor):
        async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
            given = grpc.aio.Metadata(*(details.metadata or ()), *metadata)
            return await continuation(details._replace(metadata=given), request)

    return [Unary(), Stream()] if metadata else []
