"""Requests that most tests make, and a check of errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc.aio
import numpy as np
import pytest
from pseudoword.errors import PseudowordError
from pseudoword.registry.v1 import registry_pb2, resources_pb2

from storage.tensors import write_tensors

SHOP = "tenants/shop"
REX = f"{SHOP}/concepts/rex"


class Refusal:
    """The error of a failed call; set when the `refused` block ends."""

    error: PseudowordError

    @property
    def fields(self) -> list[str]:
        return [field for field, _ in self.error.violations]


@contextmanager
def refused(code: str, reason: str, **metadata: str) -> Iterator[Refusal]:
    """Asserts that the call in the block fails with this code and reason, and with at least this metadata."""
    refusal = Refusal()
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        yield refusal
    refusal.error = error = PseudowordError.from_call(failure.value)
    assert (error.code.name, error.reason) == (code, reason), error.message
    assert metadata.items() <= dict(error.metadata).items()


def vectors(value: float = 1.0, count: int = 1, dimensions: int = 8) -> np.ndarray:
    return np.full((count, dimensions), value, np.float32)


def embedding(value: float = 1.0, **encoders: np.ndarray) -> bytes:
    return write_tensors(encoders or {"text_encoder": vectors(value)})


def version(**fields: Any) -> resources_pb2.Version:
    encoder = resources_pb2.EncoderSpec(name="text_encoder", dimensions=8, vocabulary_digest="ab" * 32)
    model = resources_pb2.BaseModel(family="miniature", encoders=[encoder])
    return resources_pb2.Version(**{"base_model": model, **fields})


def publishing(value: float = 1.0, parent: str = REX, **fields: Any) -> registry_pb2.PublishVersionRequest:
    given = {"version": version(), "embedding": embedding(value), "create_concept": True, **fields}
    return registry_pb2.PublishVersionRequest(parent=parent, **given)


async def publish(stub: Any, count: int = 1, parent: str = REX) -> list[resources_pb2.Version]:
    """Publishes `count` versions, and creates the concept if it does not exist."""
    return [await stub.PublishVersion(publishing(number + 1.0, parent)) for number in range(count)]


def pointing(alias: str, number: int, concept: str = REX, etag: str = "", **more: Any) -> registry_pb2.SetAliasRequest:
    message = resources_pb2.Alias(name=f"{concept}/aliases/{alias}", version=f"{concept}/versions/{number}", etag=etag)
    return registry_pb2.SetAliasRequest(alias=message, **more)


async def resolve(stub: Any, *words: str, parent: str = SHOP) -> list[Any]:
    """For each word the number of its version, or the (code, reason) of its error."""
    answer = await stub.ResolveWords(registry_pb2.ResolveWordsRequest(parent=parent, words=words))
    assert [resolved.word for resolved in answer.words] == list(words)
    found: list[Any] = []
    for resolved in answer.words:
        if resolved.WhichOneof("result") == "error":
            error = PseudowordError.from_status(resolved.error)
            found.append((error.code.name, error.reason))
        else:
            found.append(resolved.version.number)
    return found
