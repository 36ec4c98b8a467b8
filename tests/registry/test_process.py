"""`python -m registry` as a process: settings, signals, and restarts after a kill."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub

from registry.app import Registry
from rpc.settings import SettingsError
from storage.objects.disk import DiskStore
from storage.tensors import read_tensors
from tests.conftest import ROOT, Place
from tests.registry.conftest import settings_of
from tests.registry.requests import REX, SHOP, publishing, vectors

pytestmark = pytest.mark.process

VERSIONS = 45
KILLS = 2


@dataclass(frozen=True, kw_only=True)
class Started:
    process: "subprocess.Popen[bytes]"
    address: str


@contextmanager
def _started(place: Place, folder: Path, *arguments: str) -> Iterator[Started]:
    """A registry process that is ready; it is killed at the end."""
    address_file = folder / f"address-{time.monotonic_ns()}.json"
    command = [sys.executable, "-m", "registry", "--server.listen", "127.0.0.1:0", "--server.metrics-listen", ""]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PSEUDOWORD_")}
    environment |= {"XDG_CACHE_HOME": str(folder / "cache"), **place.environment}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--server.address-file", str(address_file), *arguments],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        ends = time.monotonic() + 60
        while not address_file.exists():
            assert process.poll() is None and time.monotonic() < ends, (folder / "log").read_text()[-3000:]
            time.sleep(0.02)
        yield Started(process=process, address=json.loads(address_file.read_text())["grpc"])
    finally:
        process.kill()
        process.wait()


async def test_requests_repeated_after_kills_are_done_exactly_once(place: Place, tmp_path: Path) -> None:
    """Eight clients publish while the server is killed twice. Each request is repeated under its id until it has a
    response."""
    waiting = list(range(VERSIONS))
    answers: dict[int, list[Any]] = {number: [] for number in waiting}

    async def publisher(stub: Any, goal: int, reached: asyncio.Event) -> None:
        while waiting:
            number = waiting.pop(0)
            request = publishing(number + 1.0, request_id=f"request-{number}")
            try:
                answers[number].append(await stub.PublishVersion(request, timeout=20))
                if sum(map(bool, answers.values())) >= goal:
                    reached.set()
            except grpc.aio.AioRpcError as error:
                assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN), error
                waiting.append(number)
                return

    for kill in range(KILLS + 1):
        with _started(place, tmp_path) as started:
            async with grpc.aio.insecure_channel(started.address) as channel:
                goal, reached = VERSIONS * (kill + 1) // (KILLS + 1), asyncio.Event()
                stub: Any = RegistryServiceStub(channel)
                work = [asyncio.create_task(publisher(stub, goal, reached)) for _ in range(8)]
                if kill < KILLS:
                    await reached.wait()
                    started.process.kill()
                await asyncio.gather(*work)
    assert not waiting

    with _started(place, tmp_path) as started:
        async with grpc.aio.insecure_channel(started.address) as channel:
            stub = RegistryServiceStub(channel)
            page = await stub.ListVersions(rpc.ListVersionsRequest(parent=REX, page_size=1000))
            assert [version.number for version in page.versions] == list(range(VERSIONS, 0, -1))
            for number, found in answers.items():
                # A last repetition gets the first response.
                request = publishing(number + 1.0, request_id=f"request-{number}")
                again = await stub.PublishVersion(request)
                assert all(answer == again for answer in found)
                file = await stub.GetEmbedding(rpc.GetEmbeddingRequest(name=again.name))
                np.testing.assert_array_equal(read_tensors(file.data)["<rex>"], vectors(number + 1.0))
            events = stub.WatchEvents(
                rpc.WatchEventsRequest(parent=SHOP, resume_token=page.revision.rsplit("-", 2)[0] + "-0-0")
            )
            seen = [(await events.read()).event.resource for _ in range(VERSIONS + 2)]
            assert seen == [SHOP, REX, *(f"{REX}/versions/{number}" for number in range(1, VERSIONS + 1))]
            tenant = await stub.GetTenant(rpc.GetTenantRequest(name=SHOP))
            assert tenant.usage.versions == VERSIONS
            events.cancel()


async def test_two_servers_of_one_machine_share_a_store(place: Place, tmp_path: Path) -> None:
    with _started(place, tmp_path) as one, _started(place, tmp_path) as other:
        async with (
            grpc.aio.insecure_channel(one.address) as first,
            grpc.aio.insecure_channel(other.address) as second,
        ):
            stubs: list[Any] = [RegistryServiceStub(first), RegistryServiceStub(second)]
            requests = [publishing(number + 1.0) for number in range(20)]
            work = (stubs[number % 2].PublishVersion(request) for number, request in enumerate(requests))
            numbers = [version.number for version in await asyncio.gather(*work)]
            assert sorted(numbers) == list(range(1, 21))
            for stub in stubs:
                page = await stub.ListVersions(rpc.ListVersionsRequest(parent=REX))
                assert len(page.versions) == 20


def test_sigterm_ends_with_status_0_and_leaves_its_views(tmp_path: Path) -> None:
    place = Place(address=str(tmp_path / "store"), access=None)
    with _started(place, tmp_path, "--server.drain-s", "5") as started:
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait(30) == 0
    # The next server finds its views.
    assert [path.name for path in (tmp_path / "store" / ".views").iterdir()] == ["0"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--store.address", "s3://bucket"],
            "the store s3://bucket cannot be used: 's3://bucket' needs the S3 settings",
        ),
        (["--store.address", "/dev/null/store"], "the store /dev/null/store cannot be used"),
        (["--store.address", "ftp://x"], "the scheme 'ftp' is not supported"),
        (["--quotas.concepts", "0"], "quotas.concepts"),
        (["--server.listen", "0.0.0.0:0"], "without a token file only loopback is served"),
    ],
)
def test_unusable_settings_end_the_start_with_status_2(arguments: list[str], says: str, tmp_path: Path) -> None:
    given = ["--store.address", str(tmp_path / "store"), "--server.metrics-listen", ""]
    command = [sys.executable, "-m", "registry", *given, *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, says in ended.stderr) == (2, True), ended.stderr


class _WithoutCreateIfAbsent(DiskStore):
    """Accepts every create, as a store without If-None-Match does."""

    def put_if_absent(self, name: str, data: bytes) -> None:
        self.put(name, data)


async def test_store_without_create_if_absent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpc.open_store.open_store", lambda address, access: _WithoutCreateIfAbsent(tmp_path / "store"))
    place = Place(address=str(tmp_path / "store"), access=None)
    with pytest.raises(SettingsError, match="the store fails the check 'create if absent'"):
        async with Registry(settings_of(place)):
            pytest.fail("the registry serves")
    assert not list((tmp_path / "store" / "log").glob("*"))


def test_registry_does_not_import_torch() -> None:
    code = (
        "import sys, registry.__main__; print([name for name in ('torch', 'diffusers', 'PIL') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
