"""Fixtures for all tests: a real MinIO, and a folder or bucket of one's own on each kind of store."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import minio
import pytest
import urllib3

from storage.address import open_store
from storage.objects import ObjectStore
from storage.s3 import S3Access

ROOT = Path(__file__).parent.parent
_START_S = 60


@dataclass(frozen=True, kw_only=True)
class Minio:
    """A running MinIO server and a bucket in it."""

    access: S3Access
    bucket: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a store is, so that another process can open it too."""

    address: str
    access: S3Access | None

    def open(self) -> ObjectStore:
        return open_store(self.address, self.access)

    @property
    def environment(self) -> dict[str, str]:
        """What tells a process of ours how to reach it."""
        if self.access is None:
            return {"PSEUDOWORD_STORE": self.address}
        return {
            "PSEUDOWORD_STORE": self.address,
            "PSEUDOWORD_S3__ENDPOINT": self.access.endpoint,
            "PSEUDOWORD_S3__ACCESS_KEY": str(self.access.access_key),
            "PSEUDOWORD_S3__SECRET_KEY": str(self.access.secret_key),
            "PSEUDOWORD_S3__SECURE": "false",
        }


@pytest.fixture(scope="session")
def minio_binary() -> Path:
    """`.cache/bin/minio`, $PSEUDOWORD_MINIO or one on the PATH. Without one, tests fail in CI and skip elsewhere."""
    places = [os.environ.get("PSEUDOWORD_MINIO"), str(ROOT / ".cache/bin/minio"), shutil.which("minio")]
    for place in places:
        if place and os.access(place, os.X_OK):
            return Path(place)
    missing = "NO MINIO: nothing was tested on an S3 store. Run `make minio`, or set PSEUDOWORD_MINIO to the binary"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(name="minio", scope="session")
def minio_server(minio_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Minio]:
    """A MinIO of its own on a free loopback port, with an empty bucket."""
    folder = tmp_path_factory.mktemp("minio")
    port = free_port()
    key, secret = "test-access", secrets.token_hex(16)
    environment = os.environ | {"MINIO_ROOT_USER": key, "MINIO_ROOT_PASSWORD": secret, "MINIO_BROWSER": "off"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [minio_binary, "server", "--quiet", "--address", f"127.0.0.1:{port}", folder / "data"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        access = S3Access(endpoint=f"127.0.0.1:{port}", access_key=key, secret_key=secret, secure=False)
        make_bucket(access, "words", server, folder / "log")
        yield Minio(access=access, bucket="words")
    finally:
        server.kill()
        server.wait()


@pytest.fixture(params=["disk", "minio"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty store; each test using it runs on the disk and on MinIO."""
    if request.param == "disk":
        return Place(address=str(tmp_path / "store"), access=None)
    server: Minio = request.getfixturevalue("minio")
    return Place(address=f"s3://{server.bucket}/test-{secrets.token_hex(6)}", access=server.access)


@pytest.fixture
def store(place: Place) -> Iterator[ObjectStore]:
    """The store of `place`, open."""
    opened = place.open()
    yield opened
    opened.close()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits until a condition holds; fails after half a minute."""

    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, "it did not come about within 30 s"
            time.sleep(0.02)

    return wait


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_bucket(access: S3Access, bucket: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    pool = urllib3.PoolManager(retries=False, timeout=5)
    client = minio.Minio(
        endpoint=access.endpoint,
        access_key=access.access_key,
        secret_key=access.secret_key,
        secure=False,
        region=access.region,
        http_client=pool,
    )
    end = time.monotonic() + _START_S
    while True:
        try:
            client.make_bucket(bucket)
            break
        except Exception:  # not listening yet, or not initialised: all kinds of answers
            if server.poll() is not None or time.monotonic() > end:
                pytest.fail(f"MinIO did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.1)
    pool.clear()
