"""`python -m tests.registry.crash_at_every_write FOLDER`: kills a registry at its k-th write, for every k.

Each run is a forked process. Prints a line of JSON for each crash: the write, whether the crash came before or after
it, what an inspection found then, the responses to the same requests sent again, and what an inspection found at the
end.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import Any

import grpc.aio
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub

from registry.app import Registry
from registry.catalogue.commands import Quotas
from registry.catalogue.state_machine import CatalogueStateMachine
from rpc import open_store as stores
from standalone.fsck import _vectors
from standalone.gc import _collect
from storage.errors import ObjectMissing
from storage.inspect.store import Inspection
from storage.objects.base import ObjectStore
from storage.objects.blobs import Blobs
from storage.objects.disk import DiskStore
from tests.conftest import Place
from tests.registry.conftest import settings_of
from tests.registry.requests import REX, pointing, publishing, version

PRODUCTION = f"{REX}/aliases/production"


class CrashingStore(DiskStore):
    """Kills its process at write `at`, counted from 1: before the write, or after it and before its caller returns."""

    def __init__(self, root: Path, at: int, *, after: bool) -> None:
        super().__init__(root)
        self._at = at
        self._after = after
        self._writes = 0
        self._lock = Lock()

    def put_if_absent(self, name: str, data: bytes) -> None:
        self._write(name, lambda: super(CrashingStore, self).put_if_absent(name, data))

    def put(self, name: str, data: bytes) -> None:
        self._write(name, lambda: super(CrashingStore, self).put(name, data))

    def delete(self, name: str) -> None:
        self._write(name, lambda: super(CrashingStore, self).delete(name))

    def _write(self, name: str, write: Callable[[], None]) -> None:
        if name.startswith("probe/"):
            return write()
        with self._lock:
            self._writes += 1
            last = self._writes == self._at
            if last and not self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            write()
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
        return None


async def _send(stub: Any, count: int | None) -> list[Any]:
    """Sends the first `count` of nine requests of all kinds; each has a request id, so that it can be sent again."""
    described = version()
    described.provenance.recipe_json = "{}"
    requests = [
        ("PublishVersion", publishing(1.0, version=described, request_id="one")),
        ("PublishVersion", publishing(2.0, request_id="two")),
        ("SetAlias", pointing("production", 1, request_id="three")),
        ("SetAlias", pointing("production", 2, request_id="four")),
        ("RollbackAlias", rpc.RollbackAliasRequest(name=PRODUCTION, request_id="five")),
        ("YankVersion", rpc.YankVersionRequest(name=f"{REX}/versions/2", request_id="six")),
        ("PublishVersion", publishing(3.0, parent=f"{REX}2", request_id="seven")),
        ("DeleteConcept", rpc.DeleteConceptRequest(name=f"{REX}2", request_id="eight")),
        ("PurgeConcept", rpc.PurgeConceptRequest(name=f"{REX}2", force=True, request_id="nine")),
    ]
    answers = [await getattr(stub, name)(request) for name, request in requests[:count]]
    return [getattr(answer, "name", "") or getattr(answer, "version", "") for answer in answers]


async def run_registry(root: Path, store: ObjectStore, requests: int | None = None) -> list[Any]:
    """Runs a registry on `store`, then the collector twice. The responses to the first `requests` requests (all)."""

    def opened(*_: object) -> ObjectStore:
        return store

    stores.open_store = opened  # type: ignore[attr-defined, assignment]
    place = Place(address=str(root), access=None)
    async with Registry(settings_of(place)) as registry, grpc.aio.insecure_channel(registry.server.address) as channel:
        answers = await _send(RegistryServiceStub(channel), requests)
    Blobs(DiskStore(root)).put("shop", b"left by a publisher that died")
    for _ in range(2):
        await _collect(store, timedelta(0), dry_run=False)
    return answers


def forked(work: Callable[[], Any]) -> int:
    """Runs `work` in a forked process. Its exit status, or minus the number of the signal that killed it."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _inspect(root: Path) -> list[list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            inspection = Inspection(
                DiskStore(root), {"registry": CatalogueStateMachine(Quotas())}, Path(folder), vectors=_vectors
            )
        except ObjectMissing:
            return []
        return [[found.severity, found.object, found.why] for found in inspection.run().findings]


def _crash(root: Path, at: int, *, after: bool) -> dict[str, Any] | None:
    """What follows a crash at write `at`; None if there are fewer writes."""
    status = forked(lambda: asyncio.run(run_registry(root, CrashingStore(root, at, after=after))))
    if status == 0:
        return None
    responses = root.with_suffix(".json")

    def again() -> None:
        answers = asyncio.run(run_registry(root, DiskStore(root)))
        responses.write_text(json.dumps(answers))

    left = _inspect(root)
    recovered = forked(again)
    answers = json.loads(responses.read_text()) if responses.exists() else None
    found = {"at": at, "after": after, "status": status, "left": left, "recovered": recovered}
    return found | {"answers": answers, "then": _inspect(root)}


def main(folder: Path) -> None:
    for after in (False, True):
        at = 1
        while True:
            root = folder / f"{at}-{'after' if after else 'before'}"
            found = _crash(root, at, after=after)
            shutil.rmtree(root, ignore_errors=True)
            if found is None:
                break
            sys.stdout.write(json.dumps(found) + "\n")
            at += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
