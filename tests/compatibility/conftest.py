"""Data of version 0.1.0: the stores of three servers that were killed at work, and a backup of two stores."""

import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pseudoword.channel import Endpoints

from tests.fork_server import ForkServer
from tests.processes import Process

DATA = Path(__file__).parent / "data"


def unpack(archive: str, folder: Path) -> Path:
    with tarfile.open(DATA / archive) as packed:
        packed.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`store` (words), `jobs` (the trainer's log) and `batches`; `trainer.log` is written by the trainer."""
    return unpack("store.tar.gz", tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def endpoints(fork_server: ForkServer, data: Path) -> Iterator[Endpoints]:
    """Today's three servers on the old stores."""
    with ExitStack() as running:
        registry = running.enter_context(Process("registry", data, "--store.address", str(data / "store")))
        peer = ("--registry.address", registry.address)
        generation = running.enter_context(
            Process("service", data, "--store.address", str(data / "batches"), *peer, fork_server=fork_server)
        )
        trainer = running.enter_context(
            Process("trainer", data, "--store.address", str(data / "jobs"), *peer, fork_server=fork_server)
        )
        yield Endpoints(registry=registry.address, trainer=trainer.address, generation=generation.address)
