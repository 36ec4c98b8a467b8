"""Faults around a registry: contention, crashes, an unavailable store, a full disk."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from pseudoword.errors import PseudowordError
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub

from storage.objects.s3 import S3Access
from tests.conftest import ROOT, Minio, Place
from tests.processes import Process
from tests.registry.conftest import Start
from tests.registry.requests import REX, SHOP, pointing, publish, publishing

WRITERS = 16


async def _outcomes(calls: Any) -> Counter[str]:
    """The number of calls with each outcome: OK, or the reason of the error."""

    async def one(call: Any) -> str:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return str(PseudowordError.from_call(error).reason)
        return "OK"

    return Counter(await asyncio.gather(*(one(call) for call in calls)))


async def test_sixteen_concurrent_writers_on_three_replicas_lose_no_update(place: Place, start: Start) -> None:
    """Each create has one winner, no update is lost, no number is used twice."""
    stubs = [await (await start()).call() for _ in range(3)]
    writers = [stubs[number % 3] for number in range(WRITERS)]
    for name in ("rex", "mara", "chair"):
        create = rpc.CreateConceptRequest(parent=SHOP, concept_id=name)
        assert await _outcomes(stub.CreateConcept(create) for stub in writers) == {"OK": 1, "CONCEPT_EXISTS": 15}

    async def publishing_some(number: int) -> list[int]:
        found = [await writers[number].PublishVersion(publishing(number * 10.0 + step)) for step in range(3)]
        return [published.number for published in found]

    numbers = await asyncio.gather(*(publishing_some(number) for number in range(WRITERS)))
    assert sorted(chain.from_iterable(numbers)) == list(range(1, WRITERS * 3 + 1))
    assert all(mine == sorted(mine) for mine in numbers)
    aliases = [
        stub.SetAlias(pointing("production", number, create_only=True)) for number, stub in enumerate(writers, start=1)
    ]
    outcomes = await _outcomes(aliases)
    assert (outcomes["OK"], sum(outcomes.values())) == (1, WRITERS)

    async def count(stub: Any) -> int:
        """Adds 1 to a label, and repeats after a lost race. The number of lost races."""
        races = 0
        while True:
            concept = await stub.GetConcept(rpc.GetConceptRequest(name=REX))
            concept.labels["count"] = str(int(concept.labels.get("count", "0")) + 1)
            update = rpc.UpdateConceptRequest(concept=concept, update_mask=FieldMask(paths=["labels"]))
            try:
                await stub.UpdateConcept(update)
            except grpc.aio.AioRpcError as error:
                assert PseudowordError.from_call(error).reason in ("ETAG_MISMATCH", "CONTENTION")
                races += 1
            else:
                return races

    races = await asyncio.gather(*(count(stub) for stub in writers))
    assert sum(races) > 0
    for stub in stubs:
        concept = await stub.GetConcept(rpc.GetConceptRequest(name=REX))
        assert concept.labels["count"] == str(WRITERS)


async def test_watch_resumed_on_other_replicas_reports_every_change(place: Place, start: Start) -> None:
    replicas = [await start() for _ in range(3)]
    stubs = [await replica.call() for replica in replicas]
    await publish(stubs[0])
    token = (await stubs[0].ListVersions(rpc.ListVersionsRequest(parent=REX))).revision
    seen: list[int] = []
    watches = 0

    async def watcher() -> None:
        nonlocal token, watches
        while len(seen) < 60:
            # Each watch is cancelled and resumed on the next replica, which may be behind.
            watch = stubs[watches % 3].WatchEvents(rpc.WatchEventsRequest(parent=SHOP, resume_token=token))
            watches += 1
            for _ in range(1 + watches % 5):
                message = await watch.read()
                token = message.resume_token
                if message.WhichOneof("message") == "event":
                    seen.append(int(message.event.resource.rsplit("/", 1)[1]))
            watch.cancel()

    watching = asyncio.create_task(watcher())
    for step in range(60):
        await stubs[step % 3].PublishVersion(publishing(step + 2.0))
    await watching
    assert watches > 10
    assert seen == list(range(2, len(seen) + 2))


@pytest.mark.process
@pytest.mark.timeout(600)
def test_registry_recovers_from_a_crash_at_every_write(tmp_path: Path) -> None:
    """SIGKILL before and after each write of a registry and of the collector, one crash for each run."""
    command = [sys.executable, "-m", "tests.registry.crash_at_every_write", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=560, check=False)
    crashes = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.returncode == 0, ended.stderr[-3000:]
    # store.json; nine requests with four blobs; the collector condemns and deletes the orphan and a purged blob.
    writes = 1 + 9 + 4 + 1 + 2
    assert [(crash["at"], crash["after"]) for crash in crashes] == [
        (at, after) for after in (False, True) for at in range(1, writes + 1)
    ]
    usual = crashes[0]["answers"]
    assert usual[0].endswith("versions/1")
    for crash in crashes:
        assert crash["status"] == -9, crash
        # A crash leaves uploads without an entry at most, and the next server gives the usual responses.
        assert {severity for severity, _, _ in crash["left"]} <= {"garbage"}, crash
        assert (crash["recovered"], crash["answers"]) == (0, usual), crash
        assert crash["then"] == [], crash


@pytest.mark.process
@pytest.mark.timeout(600)
def test_commands_recover_from_a_crash_at_every_write(tmp_path: Path) -> None:
    """SIGKILL at each write of a backup, a second backup into the same folder, a restore, a fold, and of a replica's
    maintenance: segments and checkpoints."""
    command = [sys.executable, "-m", "tests.registry.crash_at_every_write_commands", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=560, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    crashes: dict[str, list[dict[str, Any]]] = {}
    for line in ended.stdout.splitlines():
        crashes.setdefault(json.loads(line)["command"], []).append(json.loads(line))
    # A backup: eleven entries in one segment, three blobs, backup.json. A second backup: the new segment, backup.json.
    # A new store: metadata, eleven entries (or nine after a fold), blobs, a checkpoint, metadata. Maintenance: three
    # segments, a checkpoint, and the removal of the superseded checkpoint.
    assert {name: len(found) - 1 for name, found in crashes.items()} == {
        "backup": 1 + 3 + 1,
        "backup again": 1 + 1,
        "restore": 1 + 11 + 3 + 1 + 1,
        "fold": 1 + 9 + 3 + 1 + 1,
        "upkeep": 3 + 1 + 1,
    }
    for name, found in crashes.items():
        assert {crash["status"] for crash in found} == {-9}, found
        # The repeated command completes its work, with the usual result.
        assert all(crash["then"]["findings"] == [] for crash in found), found
        assert len({json.dumps(crash["then"]["counts"]) for crash in found}) == 1, found
        *cut, whole = found
        if name == "backup":
            assert {crash["left"] for crash in cut} == {"no object 'backup.json'"}
        elif name == "backup again":
            # The older backup stays valid until the new backup is complete.
            assert [crash["left"]["findings"] for crash in cut] == [[]] * len(cut)
            assert {crash["left"]["counts"]["entries"] for crash in cut} == {4}
        elif name in ("restore", "fold"):
            none, *begun = cut
            assert (none["left"], none["again"]) == ("no object 'store.json'", "")
            # Servers refuse the incomplete store, and the message says what to do.
            assert all("empty the store and repeat it" in crash["left"] for crash in begun), begun
            assert all("empty it and start the restore again" in crash["again"] for crash in [*begun, whole]), begun
            assert whole["left"] == whole["then"] | {"counts": whole["left"]["counts"]}
        else:
            assert all(crash["left"]["findings"] == [] for crash in cut), cut
        if "emptied" not in whole:
            assert {crash["again"] for crash in found} == {""}
        assert {crash.get("emptied", "") for crash in found} == {""}


async def test_requests_fail_as_unavailable_while_the_store_is_down(minio_binary: Path, tmp_path: Path) -> None:
    minio = Minio(minio_binary, tmp_path)
    try:
        await asyncio.to_thread(minio.start)
        access = minio.access
        s3 = {"endpoint": access.endpoint, "access_key": access.access_key, "secret_key": access.secret_key}
        environment = {f"PSEUDOWORD_S3__{key.upper()}": str(value) for key, value in s3.items()}
        environment |= {"PSEUDOWORD_STORE": "s3://words", "PSEUDOWORD_S3__SECURE": "false"}
        environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        with Process("registry", tmp_path, environment=environment) as registry:
            async with grpc.aio.insecure_channel(registry.address) as channel:
                stub: Any = RegistryServiceStub(channel)
                await publish(stub, 2)
                minio.kill()
                request = publishing(3.0, request_id="meanwhile")
                for call in (
                    stub.GetVersion(rpc.GetVersionRequest(name=f"{REX}/versions/1"), timeout=20),
                    stub.PublishVersion(request, timeout=3),
                    stub.SetAlias(pointing("production", 1, request_id="alias"), timeout=3),
                ):
                    with pytest.raises(grpc.aio.AioRpcError) as failure:
                        await call
                    error = PseudowordError.from_call(failure.value)
                    assert error.code.name == "UNAVAILABLE", error.message
                    assert error.retry_after is not None, error.message
                # Reads that accept staleness are served from the view.
                old = rpc.GetConceptRequest(name=REX)
                old.max_staleness.FromSeconds(600)
                assert (await stub.GetConcept(old)).version_count == 2
                await asyncio.to_thread(minio.start)
                await asyncio.to_thread(_wait_for, minio.access)
                assert (await stub.PublishVersion(request, timeout=60)).number == 3
                moved = await stub.SetAlias(pointing("production", 1, request_id="alias"), timeout=60)
                assert moved.version == f"{REX}/versions/1"
                assert (await publish(stub))[0].number == 4
    finally:
        minio.kill()


def _wait_for(access: S3Access) -> None:
    from tenacity import retry, stop_after_delay, wait_fixed

    from storage.objects.probe import probe
    from storage.objects.s3 import S3Store

    store = S3Store(access, "words")
    retry(stop=stop_after_delay(60), wait=wait_fixed(0.2), reraise=True)(probe)(store)
    store.close()


@pytest.mark.process
@pytest.mark.parametrize(
    ("what", "outcomes", "read"),
    [
        # The write certainly failed; reads are served.
        ("store", {"FAILED_PRECONDITION STORE_REFUSED"}, "2"),
        ("views", {"UNAVAILABLE OUTCOME_UNKNOWN", "UNAVAILABLE VIEW_FAILED"}, "UNAVAILABLE VIEW_FAILED"),
    ],
)
def test_full_disk_fails_writes_and_loses_nothing(what: str, outcomes: set[str], read: str, tmp_path: Path) -> None:
    """A tmpfs of a few megabytes, in a separate mount namespace."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("NO MOUNT NAMESPACE for this user: a full disk was not tried")
    command = [*alone, sys.executable, "-m", "tests.registry.disk_full", str(tmp_path), what]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    seen = json.loads(ended.stdout.splitlines()[-1])
    assert seen["filled"] == "No space left on device"
    assert set(seen["full"]) <= outcomes, seen
    assert seen["read"] == read, seen
    # With free space it goes on, and the request with the unknown outcome was done once.
    assert (seen["again"], seen["next"], seen["listed"]) == ("3", [4, 5], [5, 4, 3, 2, 1]), seen
    assert seen["sound"]
