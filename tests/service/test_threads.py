"""A server computes in one thread, with as many OpenMP helpers as --model.threads allows."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pseudoword.channel import Endpoints
from pseudoword.client import Client
from pseudoword.trainer.v1 import resources_pb2

from tests.processes import Process

pytestmark = pytest.mark.process
_HELPERS = 8
_PICTURE = Path(__file__).parents[2] / "examples" / "rex" / "1.png"


def _draw(client: Client) -> None:
    client.draw("a toy", steps=2)


def _learn(client: Client) -> None:
    client.learn("rex", [_PICTURE], recipe=resources_pb2.Recipe(steps=2, rows=2))


@pytest.mark.parametrize(("module", "work"), [("service", _draw), ("trainer", _learn)])
def test_one_thread_of_a_server_computes_with_its_helpers(
    module: str, work: Callable[[Client], None], tmp_path: Path
) -> None:
    """A second computing thread that lives on would have as many helpers of its own, and all would sleep often."""

    def threads(computing: int) -> int:
        """The number of threads of a server that has done some work."""
        folder = tmp_path / str(computing)
        folder.mkdir()
        settings = ["--registry.address", registry.address, "--store.address", str(folder / "store")]
        with Process(module, folder, *settings, "--model.threads", str(computing)) as server:
            endpoints = Endpoints(registry=registry.address, trainer=server.address, generation=server.address)
            with Client(endpoints) as client:
                work(client)
            return server.threads()

    with Process("registry", tmp_path, "--store.address", str(tmp_path / "store")) as registry:
        helped = threads(1 + _HELPERS) - threads(1)
    # The other half are torch's inter-op pool, which --model.threads creates too and no code uses.
    assert helped < 2.5 * _HELPERS
