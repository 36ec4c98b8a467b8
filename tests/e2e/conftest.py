"""The whole system as `pseudoword up` starts it, and the command line as a user calls it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pseudoword.channel import Endpoints
from pseudoword.client import Client

from standalone.servers import Servers

ROOT = Path(__file__).parents[2]
REX = sorted((ROOT / "examples" / "rex").glob("*.png"))

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def servers(starts_process: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with Servers(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture(scope="session")
def endpoints(servers: Servers) -> Endpoints:
    return servers.endpoints


@pytest.fixture
def client(endpoints: Endpoints) -> Iterator[Client]:
    with Client(endpoints) as client:
        yield client


@pytest.fixture
def run(endpoints: Endpoints, tmp_path: Path) -> Run:
    """run("draw", "a dog", ...) calls `pseudoword`, in an empty folder."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PSEUDOWORD_")}
    for server in ("registry", "trainer", "generation"):
        environment[f"PSEUDOWORD_{server.upper()}"] = getattr(endpoints, server)

    def call(*arguments: str, timeout_s: float = 120.0) -> "subprocess.CompletedProcess[str]":
        command = [str(Path(sys.executable).with_name("pseudoword")), *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    return call
