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

from storage.objects.base import ObjectStore
from storage.objects.open import open_store
from storage.objects.s3 import S3Access

ROOT = Path(__file__).parent.parent
_START_S = 60


class Minio:
    """`minio server` on a free port of loopback, with its data and its log in a folder. It can be killed, and started
    again on its data."""

    bucket = "words"

    def __init__(self, binary: Path, folder: Path, certificates: Path | None = None) -> None:
        """`certificates`: a folder with public.crt and private.key, for TLS; the first is the only one trusted."""
        self._folder = folder
        self.access = S3Access(
            endpoint=f"127.0.0.1:{free_port()}",
            access_key="test-access",
            secret_key=secrets.token_hex(16),
            secure=certificates is not None,
            ca_file=None if certificates is None else certificates / "public.crt",
        )
        self._command = [str(binary), "server", "--quiet", "--address", self.access.endpoint, str(folder / "data")]
        if certificates is not None:
            self._command += ["--certs-dir", str(certificates)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it answers and the bucket is there."""
        keys = {"MINIO_ROOT_USER": str(self.access.access_key), "MINIO_ROOT_PASSWORD": str(self.access.secret_key)}
        environment = os.environ | keys | {"MINIO_BROWSER": "off"}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        self._make_bucket()

    def kill(self) -> None:
        """SIGKILL; nothing happens where it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _make_bucket(self) -> None:
        trusted = None if self.access.ca_file is None else str(self.access.ca_file)
        pool = urllib3.PoolManager(retries=False, timeout=5, ca_certs=trusted)
        client = minio.Minio(
            endpoint=self.access.endpoint,
            access_key=self.access.access_key,
            secret_key=self.access.secret_key,
            secure=self.access.secure,
            region=self.access.region,
            http_client=pool,
        )
        end = time.monotonic() + _START_S
        while True:
            try:
                if not client.bucket_exists(self.bucket):
                    client.make_bucket(self.bucket)
                break
            except Exception:  # not listening yet, or not initialised: all kinds of answers
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > end:
                    log = (self._folder / "log").read_text(errors="replace")
                    pytest.fail(f"MinIO did not start:\n{log[-3000:]}")
                time.sleep(0.1)
        pool.clear()


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


def find_program(name: str) -> Path | None:
    """A program that the project has installed: $PSEUDOWORD_<NAME>, `.cache/bin/<name>`, or one on the PATH."""
    for place in (os.environ.get(_variable(name)), str(ROOT / ".cache/bin" / name), shutil.which(name)):
        if place and os.access(place, os.X_OK):
            return Path(place)
    return None


def need_program(name: str, want: str, *, target: str = "") -> Path:
    """find_program; without one, the test fails in CI and skips elsewhere, saying that `want` was not tested. The
    Makefile's `target` is its name, unless given."""
    found = find_program(name)
    if found is not None:
        return found
    missing = f"NO {name.upper()}: {want}. Run `make {target or name}`, or set {_variable(name)} to the binary"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


def _variable(name: str) -> str:
    return f"PSEUDOWORD_{name.upper().replace('-', '_')}"


@pytest.fixture(scope="session")
def minio_binary() -> Path:
    """The program."""
    return need_program("minio", "nothing was tested on an S3 store")


@pytest.fixture(name="minio", scope="session")
def minio_server(minio_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Minio]:
    """A MinIO with an empty bucket, for all tests."""
    server = Minio(minio_binary, tmp_path_factory.mktemp("minio"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


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
