"""Fixtures for all tests: a real MinIO, and an empty store on each kind of object store.

Tests that start a server or another program carry the marker `process`, and are not part of `make unit`: a fixture that
starts one requests the fixture `starts_process`, a module that starts one itself sets `pytestmark`.
"""

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
from tests.fork_server import ForkServer

ROOT = Path(__file__).parent.parent
_START_S = 60
_PORTS = range(10_000, 32_768)
# The files that take longest, longest first. Each file runs on one worker of pytest-xdist: a long one that begins last
# would leave the other worker idle.
_LONGEST = (
    "trainer/test_processes.py",
    "service/test_threads.py",
    "e2e/test_main_job.py",
    "trainer/test_workers.py",
    "service/test_batches_shared.py",
    "registry/test_faults.py",
    "trainer/test_server.py",
    "service/test_batches.py",
    "trainer/test_evaluation.py",
    "service/test_generation.py",
    "triton/test_denoiser.py",
    "compatibility/test_earlier_version.py",
    "miniature/test_training.py",
    "service/test_stress.py",
    "diffusion/test_equality.py",
    "robustness/test_checkers.py",
    "trainer/test_jetstream.py",
    "trainer/test_engine.py",
)


@pytest.hookimpl(tryfirst=True)  # before -m selects tests by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and "starts_process" in item.fixturenames:
            item.add_marker("process")
    order = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(str(item.path.relative_to(ROOT / "tests")), len(order)))


@pytest.fixture(scope="session")
def starts_process() -> None:
    """Requested by each fixture that starts a server or another program: its tests get the marker `process`."""


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
        """Returns when it responds and the bucket exists."""
        keys = {"MINIO_ROOT_USER": str(self.access.access_key), "MINIO_ROOT_PASSWORD": str(self.access.secret_key)}
        environment = os.environ | keys | {"MINIO_BROWSER": "off"}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        self._make_bucket()

    def kill(self) -> None:
        """Sends SIGKILL; no effect if it does not run."""
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
            except Exception:  # not listening or not initialised yet: many kinds of errors
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > end:
                    log = (self._folder / "log").read_text(errors="replace")
                    pytest.fail(f"MinIO did not start:\n{log[-3000:]}")
                time.sleep(0.1)
        pool.clear()


@dataclass(frozen=True, kw_only=True)
class Place:
    """The address of a store, and the access to it, so that another process can open it too."""

    address: str
    access: S3Access | None

    def open(self) -> ObjectStore:
        return open_store(self.address, self.access)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables from which our processes take address and access."""
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
    """As find_program. If the program is missing, the test fails in CI and is skipped elsewhere, with the message
    `want`. `target` is the target of the Makefile that installs it (`name`)."""
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
def minio_binary(starts_process: None) -> Path:
    return need_program("minio", "nothing was tested on an S3 store")


@pytest.fixture(scope="session")
def nats_binary(starts_process: None) -> Path:
    return need_program("nats-server", "nothing was tested on NATS", target="nats")


@pytest.fixture(name="minio", scope="session")
def minio_server(minio_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Minio]:
    """A MinIO with an empty bucket, which all tests of this worker share."""
    server = Minio(minio_binary, tmp_path_factory.mktemp("minio"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def fork_server(starts_process: None) -> Iterator[ForkServer]:
    """Starts trainers and Generation servers without the seconds that importing torch takes."""
    with ForkServer() as running:
        yield running


@pytest.fixture(params=["disk", pytest.param("minio", marks=pytest.mark.process)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty store; each test that uses it runs on disk and on MinIO."""
    if request.param == "disk":
        return Place(address=str(tmp_path / "store"), access=None)
    server: Minio = request.getfixturevalue("minio")
    return Place(address=f"s3://{server.bucket}/test-{secrets.token_hex(6)}", access=server.access)


@pytest.fixture
def store(place: Place) -> Iterator[ObjectStore]:
    """The opened store of `place`."""
    opened = place.open()
    yield opened
    opened.close()


class Eventually:
    """eventually(condition) waits until the condition holds, and fails after 30 seconds: with what `found` returns."""

    def __call__(self, condition: Callable[[], bool], found: Callable[[], object] = lambda: "") -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, f"the condition did not hold within 30 s: {found()}"
            time.sleep(0.02)


@pytest.fixture
def eventually() -> Eventually:
    return Eventually()


def free_port() -> int:
    """A port of loopback on which no process listens. It lies below the ports that the kernel assigns to connections
    and to servers that ask for any port, so it stays free until the caller's process listens."""
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
