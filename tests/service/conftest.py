"""A registry and a Generation server, and words in the registry."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pseudoword.calls import errors
from pseudoword.channel import Endpoints
from pseudoword.client import Client
from pseudoword.registry.v1 import registry_pb2, resources_pb2

from diffusion.checkpoint import BaseModel
from diffusion.conversions import base_model
from storage.signatures import sign
from storage.tensors import tensors_digest, write_tensors
from tests.fork_server import ForkServer
from tests.processes import Process

MAX_PICTURES = 20
SHARD_PICTURES = 4


@dataclass(frozen=True, kw_only=True)
class System:
    """Running servers and a client."""

    registry: Process
    generation: Process
    client: Client
    store: Path | None = None  # of Generation's batches

    def client_of(self, tenant: str) -> Client:
        return Client(Endpoints(registry=self.registry.address, generation=self.generation.address), tenant=tenant)

    def waiting(self) -> float:
        """The number of pictures that wait or are drawn, from the metrics."""
        return self.generation.metric("pseudoword_generation_pictures_waiting")


@pytest.fixture(scope="session")
def model() -> BaseModel:
    return BaseModel.load(None)


@pytest.fixture(scope="session")
def system(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder: Path = tmp_path_factory.mktemp("generation")
    store = ["--store.address", str(folder / "store")]
    with Process("registry", folder, *store) as registry:
        settings = ["--registry.address", registry.address, "--limits.max-pictures", str(MAX_PICTURES)]
        settings += ["--store.address", str(folder / "batches"), "--batches.max-pictures", "100"]
        settings += ["--batches.shard-pictures", str(SHARD_PICTURES), "--batches.max-active", "3"]
        settings += ["--batches.lease", "PT3S"]  # a killed server's claims are free again soon after
        with (
            Process("service", folder, *settings, fork_server=fork_server) as generation,
            Client(Endpoints(registry=registry.address, generation=generation.address)) as client,
        ):
            yield System(registry=registry, generation=generation, client=client, store=folder / "batches")


Publish = Callable[..., resources_pb2.Version]


@pytest.fixture(scope="session")
def publish(system: System, model: BaseModel) -> Publish:
    return publisher(system, model)


def publisher(system: System, model: BaseModel) -> Publish:
    """publish(name, seed=..., vectors=..., client=..., key=...) publishes random vectors as the word's next version,
    signed with `key` if one is given."""

    def make(
        name: str,
        *,
        seed: int = 0,
        vectors: int = 1,
        made_for: resources_pb2.BaseModel | None = None,
        client: Client | None = None,
        key: Ed25519PrivateKey | None = None,
    ) -> resources_pb2.Version:
        client = client or system.client
        base = made_for or base_model(model.spec)
        tensor = np.random.default_rng(seed).normal(0, 0.05, (vectors, base.encoders[0].dimensions)).astype(np.float32)
        version = resources_pb2.Version(base_model=base)
        version.base_model.encoders[0].vectors = vectors
        if key is not None:
            value = sign(key, tensors_digest({"text_encoder": tensor}))
            version.signatures.add(algorithm="ed25519", key_id="release", value=value)
        request = registry_pb2.PublishVersionRequest(
            parent=str(client.concept(name)),
            version=version,
            embedding=write_tensors({"text_encoder": tensor}),
            create_concept=True,
        )
        with errors():
            published: resources_pb2.Version = client.registry.PublishVersion(request)
        return published

    return make
