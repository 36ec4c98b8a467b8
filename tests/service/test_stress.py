"""Words are published, evicted and moved while many requests run: no picture shows another request's word."""

import base64
import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image
from pseudoword.channel import Endpoints
from pseudoword.client import Client
from pseudoword.errors import PseudowordError
from pseudoword.names import VersionName
from pseudoword.picture import Picture

from diffusion.checkpoint import BaseModel
from tests.fork_server import ForkServer
from tests.processes import Process
from tests.service.conftest import System, publisher

_WORDS, _VERSIONS, _REQUESTS = 12, 3, 64
_CACHE_BYTES = 4096  # eight vectors of the miniature: requests evict each other's words


@pytest.fixture(scope="module")
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture(scope="module")
def system(
    fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory, key: Ed25519PrivateKey
) -> Iterator[System]:
    """A server with a small cache of words that accepts signed words only."""
    folder: Path = tmp_path_factory.mktemp("stress")
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    (folder / "keys.toml").write_text(f'[keys]\nrelease = "{public}"\n')
    with ExitStack() as stack:
        registry = stack.enter_context(Process("registry", folder, "--store.address", str(folder / "store")))
        generation = stack.enter_context(
            Process(
                "service",
                folder,
                *("--words.keys", str(folder / "keys.toml")),
                *("--registry.address", registry.address),
                *("--words.cache-bytes", str(_CACHE_BYTES)),
                *("--words.max-meanings", "5"),
                fork_server=fork_server,
            )
        )
        endpoints = Endpoints(registry=registry.address, generation=generation.address)
        client = stack.enter_context(Client(endpoints))
        yield System(registry=registry, generation=generation, client=client)


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.data))).astype(int)


def test_unsigned_and_forged_words_are_rejected(system: System, model: BaseModel, key: Ed25519PrivateKey) -> None:
    publish = publisher(system, model)
    publish("signed", key=key)
    publish("unsigned")
    publish("forged", key=Ed25519PrivateKey.generate())
    (picture,) = system.client.draw("<signed>", steps=1)
    assert picture.info.record.words[0].version.endswith("/versions/1")
    for word in ("unsigned", "forged"):
        with pytest.raises(PseudowordError) as caught:
            system.client.draw(f"<signed> and <{word}>", steps=1)
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "WORD_UNSIGNED")
        assert caught.value.metadata["word"] == word


def test_pictures_have_the_words_of_their_own_request_under_load(
    system: System, model: BaseModel, key: Ed25519PrivateKey
) -> None:
    publish = publisher(system, model)
    for number in range(_WORDS * _VERSIONS):
        publish(f"w{number % _WORDS}", seed=number, vectors=1 + number % 2, key=key)
    stop = threading.Event()

    def swap() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            system.client.set_alias(f"w{turn % _WORDS}", "production", 1 + turn % _VERSIONS)

    def draw(number: int) -> Picture:
        prompt = f"<w{number % _WORDS}> beside <w{(number * 5 + 1) % _WORDS}@{1 + number % _VERSIONS}>"
        (picture,) = system.client.draw(
            prompt, seed=number, steps=3, guidance_scale=(1.0, 4.0)[number % 2], exact=False
        )
        return picture

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        with ThreadPoolExecutor(_REQUESTS) as threads:
            drawn = list(threads.map(draw, range(_REQUESTS)))
    finally:
        stop.set()
        swapping.join()

    used = set()
    for number, picture in enumerate(drawn):
        record = picture.info.record
        names = [VersionName.parse(word.version) for word in record.words]
        used.update(names)
        pinned = " beside ".join(f"<{name.concept}@{name.version}>" for name in names)
        (alone,) = system.client.draw(
            pinned, seed=number, steps=3, guidance_scale=record.settings.guidance_scale, exact=True
        )
        assert np.abs(pixels(alone) - pixels(picture)).max() <= 1, (number, pinned)
    assert len(used) > _WORDS
