"""WordResolver with a registry that sends wrong vectors, or is unavailable."""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc.aio
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from pseudoword.names import WordRef
from pseudoword.registry.v1 import registry_pb2, registry_pb2_grpc, resources_pb2

from diffusion.checkpoint import BaseModel
from diffusion.conversions import base_model
from rpc.errors import DataLoss, Unavailable
from rpc.identity import ANONYMOUS
from service.metrics import EngineMetrics
from service.settings import WordSettings
from service.words.resolution_cache import ResolutionCache
from service.words.resolver import WordResolver
from service.words.tensor_cache import TensorCache
from storage.tensors import tensors_digest, write_tensors

REX = WordRef(None, "rex")


@dataclass(kw_only=True)
class Registry(registry_pb2_grpc.RegistryServiceServicer):
    """Resolves <rex> to a version with the digest of `named`, and sends the vectors `given`."""

    base: resources_pb2.BaseModel
    named: np.ndarray
    given: np.ndarray
    address: str = ""
    server: Any = None
    requested: list[str] = field(default_factory=list)

    async def ResolveWords(
        self, request: registry_pb2.ResolveWordsRequest, context: Any
    ) -> registry_pb2.ResolveWordsResponse:
        version = resources_pb2.Version(
            name="tenants/default/concepts/rex/versions/1",
            base_model=self.base,
            tensors_digest=tensors_digest({"text_encoder": self.named}),
        )
        return registry_pb2.ResolveWordsResponse(
            words=[registry_pb2.ResolvedWord(word=word, version=version) for word in request.words]
        )

    async def GetEmbedding(
        self, request: registry_pb2.GetEmbeddingRequest, context: Any
    ) -> registry_pb2.GetEmbeddingResponse:
        self.requested.append(request.name)
        return registry_pb2.GetEmbeddingResponse(data=write_tensors({"text_encoder": self.given}))


@pytest.fixture
async def registry(model: BaseModel) -> AsyncIterator[Registry]:
    dims = model.spec.encoders[0].dims
    one, other = (np.full((1, dims), value, np.float32) for value in (0.1, 0.2))
    served = Registry(base=base_model(model.spec), named=one, given=other)  # type: ignore[abstract]
    served.server = grpc.aio.server()
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(served, served.server)
    served.address = f"127.0.0.1:{served.server.add_insecure_port('127.0.0.1:0')}"
    await served.server.start()
    yield served
    await served.server.stop(0)


@pytest.fixture
async def words(model: BaseModel, registry: Registry) -> AsyncIterator[Callable[..., WordResolver]]:
    """words(...settings) makes the resolver of a Generation server whose watch is fresh."""
    async with grpc.aio.insecure_channel(registry.address) as channel:

        def make(**settings: Any) -> WordResolver:
            resolutions: ResolutionCache[resources_pb2.Version] = ResolutionCache(10)
            resolutions.mark_fresh(time.monotonic())
            stub: Any = registry_pb2_grpc.RegistryServiceStub(channel)
            metrics = EngineMetrics(CollectorRegistry())
            return WordResolver(stub, model, resolutions, TensorCache(2**20), metrics, WordSettings(**settings))

        yield make


async def resolved(resolver: WordResolver) -> float:
    """The value with which the vectors of <rex> are filled."""
    (word,) = await resolver.resolve("default", [REX], ANONYMOUS, field="prompt")
    return float(word.vectors[0, 0])


async def test_vectors_that_do_not_match_their_digest_are_never_used(
    registry: Registry, words: Callable[..., WordResolver]
) -> None:
    server = words()
    for _ in range(2):  # they are not cached either
        with pytest.raises(DataLoss) as caught:
            await resolved(server)
        assert caught.value.reason == "DIGEST_MISMATCH"
    registry.given = registry.named
    assert await resolved(server) == pytest.approx(0.1)
    assert await resolved(server) == pytest.approx(0.1)
    assert len(registry.requested) == 3  # correct vectors are fetched once


@pytest.mark.parametrize(("offline", "served"), [(timedelta(hours=1), True), (timedelta(0), False)])
async def test_words_are_served_without_the_registry_for_the_offline_setting(
    registry: Registry, words: Callable[..., WordResolver], offline: timedelta, served: bool
) -> None:
    registry.given = registry.named
    server = words(offline=offline, max_staleness=timedelta(0))
    assert await resolved(server) == pytest.approx(0.1)
    await registry.server.stop(0)
    if served:
        assert await resolved(server) == pytest.approx(0.1)
    else:
        with pytest.raises(Unavailable):
            await resolved(server)
