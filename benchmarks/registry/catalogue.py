"""What a registry's calls cost by the size of its catalogue, and cached resolves beside a bare grpc.aio echo.

python -m benchmarks.registry.catalogue --help

The catalogue is one tenant's, three versions a concept, seeded through the ledger by full group commits; no vectors are
written, since none are read. All that is compared is measured in one run.
"""

import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import grpc.aio
from pseudoword.names import ConceptName
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub

from benchmarks.registry.echo import METHOD
from registry.catalogue.book import RegistryBook
from registry.catalogue.commands import ConceptFields, PublishVersion, Quotas
from registry.server import SHARDS
from storage.address import open_store
from storage.checkpoints import checkpoints, write_checkpoint
from storage.ledger import Ledger, shard_of

TENANT = "shop"
PARENT = f"tenants/{TENANT}"
_VERSIONS = 3
_WORDS = 10
_SUMMARY = {"base_model": {"family": "stable-diffusion-1", "encoders": [{"name": "text_encoder", "dimensions": 768}]}}


@click.command()
@click.option("--sizes", default="1000,4000,16000", show_default=True, help="Concepts in the catalogue, one by one.")
@click.option("--seconds", default=3.0, show_default=True, help="For each rate.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(sizes: str, seconds: float, output: Path | None) -> None:
    """Measure a registry on a local disk."""
    figures = [asyncio.run(_measure(int(size), seconds)) for size in sizes.split(",")]
    found = {"machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores", "figures": figures}
    text = json.dumps(found, indent=1)
    click.echo(text)
    if output is not None:
        output.write_text(text + "\n")


async def _measure(size: int, seconds: float) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="pseudoword-bench-"))
    try:
        seeding_s = await _seed(folder / "store", size, folder / "seeder")
        found: dict[str, Any] = {"concepts": size, "versions": size * _VERSIONS}
        found["seeding_changes_per_s"] = round(size * (_VERSIONS + 1) / seeding_s)
        # With checkpoint; a second start finds its own view; without a checkpoint, the log and its segments are read.
        found["start_from_checkpoint_s"] = await _start(folder, "fresh")
        found["start_with_own_view_s"] = await _start(folder, "fresh")
        shutil.move(folder / "store" / "checkpoints", folder / "checkpoints")
        found["start_from_log_s"] = await _start(folder, "bare")
        shutil.rmtree(folder / "store" / "checkpoints", ignore_errors=True)
        with _server(folder, "fresh") as address:
            return found | await _calls(address, size, seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _seed(address: Path, size: int, views: Path) -> float:
    store = open_store(str(address))
    quotas = Quotas(concepts=10**9, versions_per_concept=10**9, embedding_bytes=10**15)
    ledger = Ledger.open(store, RegistryBook(quotas), shards=SHARDS, view_folder=views)
    shard = shard_of(TENANT, SHARDS)
    began = time.monotonic()

    async def publish(number: int, version: int) -> None:
        name = ConceptName(TENANT, f"word-{number:06d}")
        fields = ConceptFields(
            display_name=f"word {number}",
            description="",
            kind="CONCEPT_KIND_OBJECT",
            labels={"team": f"t{number % 20}"},
            readers=(),
        )
        digest = f"{number:032x}{version:032x}"
        command = PublishVersion(
            peer="bench",
            concept=name,
            create=fields,
            summary=_SUMMARY,
            job="",
            blob=f"t/{TENANT}/blobs/{digest}/{0:016x}",
            blob_digest=digest,
            size=3200,
            tensors_digest=digest,
            record="",
        )
        await ledger.commit(
            shard,
            command,
            request_id=f"{number}-{version}",
            tenant=TENANT,
            digest="",
            actor="bench",
            on_behalf_of=None,
            timeout_s=600,
        )

    for version in range(_VERSIONS):
        for start in range(0, size, 2000):
            await asyncio.gather(*(publish(n, version) for n in range(start, min(size, start + 2000))))
    seconds = time.monotonic() - began
    if not checkpoints(store, shard):
        await asyncio.to_thread(write_checkpoint, store, ledger._writers[shard].view)
    await ledger.close()
    return seconds


class _server:
    """A registry process on the seeded store."""

    def __init__(self, folder: Path, views: str) -> None:
        self._file = folder / "address.json"
        self._command = [sys.executable, "-m", "registry", "--server.listen", "127.0.0.1:0"]
        self._command += ["--server.metrics-listen", "", "--server.log-level", "error"]
        self._command += ["--server.address-file", str(self._file), "--store.address", str(folder / "store")]
        self._command += ["--store.views", str(folder / views)]

    def __enter__(self) -> str:
        self._file.unlink(missing_ok=True)
        self._process = subprocess.Popen(self._command)
        while not self._file.exists():
            assert self._process.poll() is None, "the registry has ended"
            time.sleep(0.005)
        return str(json.loads(self._file.read_text())["grpc"])

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


async def _start(folder: Path, views: str) -> float:
    """Seconds from the process's start to its first strong answer."""
    began = time.monotonic()
    with _server(folder, views) as address:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = RegistryServiceStub(channel)
            while True:
                try:
                    await stub.GetTenant(rpc.GetTenantRequest(name=PARENT))
                    break
                except grpc.aio.AioRpcError as error:
                    # It replays the log for longer than a call waits.
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
        return round(time.monotonic() - began, 2)


async def _calls(address: str, size: int, seconds: float) -> dict[str, Any]:
    words = [f"word-{number * size // _WORDS:06d}" for number in range(_WORDS)]
    strong = rpc.ResolveWordsRequest(parent=PARENT, words=words)
    cached = rpc.ResolveWordsRequest(parent=PARENT, words=words)
    cached.max_staleness.FromSeconds(3600)
    first = rpc.ListConceptsRequest(parent=PARENT, page_size=50)
    middle = rpc.ListConceptsRequest(parent=PARENT, page_size=50, filter='labels.team = "t7"')
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = RegistryServiceStub(channel)
        answer = await stub.ResolveWords(strong)
        assert all(word.WhichOneof("result") == "version" for word in answer.words)
        found = {
            "page_of_50_ms": await _latency(lambda: stub.ListConcepts(first)),
            "filtered_page_of_50_ms": await _latency(lambda: stub.ListConcepts(middle)),
            "resolve_10_strong_ms": await _latency(lambda: stub.ResolveWords(strong)),
            "resolve_10_cached_ms": await _latency(lambda: stub.ResolveWords(cached)),
        }
        command = [sys.executable, "-m", "benchmarks.registry.echo", str(answer.ByteSize())]
        echo = await asyncio.to_thread(lambda: subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        try:
            assert echo.stdout is not None
            port = echo.stdout.readline().strip()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as other:
                call: Any = other.unary_unary(METHOD)
                request = cached.SerializeToString()
                # By turns, so that what else the machine does meets both.
                rates = []
                for _ in range(3):
                    ours = await _rate(lambda: stub.ResolveWords(cached), seconds)
                    rates.append((ours, await _rate(lambda: call(request), seconds)))
        finally:
            echo.kill()
            echo.wait()
        found["answer_bytes"] = answer.ByteSize()
        found["resolve_10_cached_per_s"] = round(median(ours for ours, _ in rates))
        found["echo_per_s"] = round(median(theirs for _, theirs in rates))
        found["of_the_echo"] = round(median(ours / theirs for ours, theirs in rates), 2)
        return found


async def _latency(call: Callable[[], Awaitable[Any]], count: int = 60) -> float:
    """Median of calls one after the other, in milliseconds."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        await call()
        times.append(time.perf_counter() - began)
    return round(median(times) * 1000, 2)


async def _rate(call: Callable[[], Awaitable[Any]], seconds: float, clients: int = 16) -> float:
    """Answers a second to so many clients that ask again at once."""
    done, end = 0, time.perf_counter() + seconds

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await call()
            done += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    return done / seconds


if __name__ == "__main__":
    main()
