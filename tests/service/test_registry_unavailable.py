"""Words while the registry is stopped and started."""

import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from pseudoword.channel import Endpoints
from pseudoword.client import Client
from pseudoword.errors import PseudowordError

from diffusion.checkpoint import BaseModel
from tests.conftest import Eventually
from tests.fork_server import ForkServer
from tests.processes import Process
from tests.service.conftest import System, publisher


def test_known_words_are_used_while_the_registry_is_down(
    tmp_path: Path, model: BaseModel, fork_server: ForkServer, eventually: Eventually
) -> None:
    store = ["--store.address", str(tmp_path / "store")]
    with Process("registry", tmp_path, *store) as registry, ExitStack() as stack:
        generation = stack.enter_context(
            Process("service", tmp_path, "--registry.address", registry.address, fork_server=fork_server)
        )
        client = stack.enter_context(Client(Endpoints(registry=registry.address, generation=generation.address)))
        publish = publisher(System(registry=registry, generation=generation, client=client), model)
        publish("rex", seed=1)
        publish("rex", seed=2)
        client.set_alias("rex", "production", 1)

        def used() -> int:
            (picture,) = client.draw("<rex>", steps=1)
            return int(picture.info.record.words[0].version[-1])

        time.sleep(3)  # until the watch has reported the move, which drops the cached version
        assert used() == 1
        registry.kill()
        assert used() == 1
        with pytest.raises(PseudowordError) as caught:
            client.draw("<rex>", steps=1, max_staleness=timedelta(0), timeout_s=20)
        assert caught.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        with pytest.raises(PseudowordError):
            client.draw("<never-seen>", steps=1, timeout_s=20)

        registry.start()

        def moved() -> bool:
            # The channel reconnects every few seconds; until then a call fails with UNAVAILABLE.
            try:
                return client.set_alias("rex", "production", 2).version.endswith("/versions/2")
            except PseudowordError as error:
                assert error.code is grpc.StatusCode.UNAVAILABLE
                return False

        eventually(moved)
        eventually(lambda: used() == 2)
