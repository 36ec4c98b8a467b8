"""Measures the cost of a registry's calls by the size of its catalogue, and cached resolves beside a bare grpc.aio
echo.

python -m benchmarks.registry.catalogue --help

The catalogue belongs to one tenant and has three versions for each concept. It is seeded through the ledger with full
group commits on a disk; for MinIO that store is copied. No vectors are written, because none are read. Compared figures
are measured in one run.
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
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import click
import grpc.aio
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub

from benchmarks.registry.echo import METHOD
from storage.objects.base import list_all
from storage.objects.open import open_store
from tests.conftest import Minio, Place, find_program
from tests.registry.seeding import PARENT, VERSIONS, seed, words_of

_WORDS = 10


@click.command()
@click.option(
    "--sizes", default="1000,10000", show_default=True, help="Numbers of concepts in the catalogue, with commas."
)
@click.option("--store", "kind", type=click.Choice(["disk", "minio"]), default="disk", show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="Seconds for each rate.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder in which seeded stores are kept for later runs.")
@click.option("--skip-log", is_flag=True, help="Skip the start of a replica from the log alone, which takes minutes.")
@click.option("--seed-only", is_flag=True, help="Seed the stores and measure nothing.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON file to write the figures to.")
def main(
    sizes: str, kind: str, seconds: float, work: Path | None, skip_log: bool, seed_only: bool, output: Path | None
) -> None:
    """Measure a registry on a local disk, or on a MinIO that this command starts."""
    with tempfile.TemporaryDirectory(prefix="pseudoword-bench-") as folder:
        for size in map(int, sizes.split(",")):
            seeded = _seeded((work or Path(folder)).absolute(), size)
            if seed_only:
                continue
            figures = asyncio.run(_measure(seeded, Path(folder) / f"{kind}-{size}", kind, size, seconds, skip_log))
            click.echo(json.dumps(figures, indent=1))
            if output is not None:
                _put(output, kind, figures)


def _put(output: Path, kind: str, figures: dict[str, Any]) -> None:
    """Write the figures into the file, which keeps the figures of other stores and sizes."""
    found = json.loads(output.read_text()) if output.exists() else {}
    found["machine"] = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    others = [one for one in found.get(kind, []) if one["concepts"] != figures["concepts"]]
    found[kind] = sorted([*others, figures], key=lambda one: one["concepts"])
    output.write_text(json.dumps(found, indent=1) + "\n")


def _seeded(work: Path, size: int) -> Path:
    """The folder of a disk store with `size` concepts and a checkpoint; created if it does not exist."""
    folder = work / str(size)
    done = folder / "seeded.json"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        store, began = open_store(str(folder / "store")), time.monotonic()
        asyncio.run(seed(store, size, folder / "seeder"))
        seconds = time.monotonic() - began
        store.close()
        shutil.rmtree(folder / "seeder")
        changes = round(size * (VERSIONS + 1) / seconds)
        done.write_text(json.dumps({"seeding_changes_per_s": changes}))
        click.echo(f"{size} concepts seeded in {seconds:.0f} s, {changes} changes a second", err=True)
    return folder


async def _measure(seeded: Path, folder: Path, kind: str, size: int, seconds: float, skip_log: bool) -> dict[str, Any]:
    with placed(seeded / "store", folder, kind) as place:
        store = place.open()
        found: dict[str, Any] = {"concepts": size, "versions": size * VERSIONS}
        found |= json.loads((seeded / "seeded.json").read_text())
        found["entries"] = sum(1 for _ in list_all(store, "log/"))
        # The first start reads the checkpoint, the second one its own view. Without checkpoints, a start reads the log
        # and its segments.
        found["start_of_a_new_replica_s"] = await _start(place, folder, "fresh")
        found["start_with_own_view_s"] = await _start(place, folder, "fresh")
        kept = {info.name: store.get(info.name) for info in list_all(store, "checkpoints/")}
        found["checkpoint_bytes"] = sum(map(len, kept.values()))
        if not skip_log:
            for name in kept:
                store.delete(name)
            found["start_from_log_s"] = await _start(place, folder, "bare")
        with _server(place, folder, "fresh") as address:
            found |= await _calls(address, size, seconds)
        store.close()
        return found


@contextmanager
def placed(seeded: Path | None, folder: Path, kind: str) -> Iterator[Place]:
    """An empty store, or a copy of a disk store; a run can delete its objects."""
    folder.mkdir()
    if kind == "disk":
        if seeded is not None:
            shutil.copytree(seeded, folder / "store", ignore=shutil.ignore_patterns(".*"), copy_function=os.link)
        yield Place(address=str(folder / "store"), access=None)
        return
    binary = find_program("minio")
    if binary is None:
        raise click.ClickException("no MinIO: run `make minio`")
    (folder / "minio").mkdir()
    server = Minio(binary, folder / "minio")
    try:
        server.start()
        place = Place(address=f"s3://{server.bucket}", access=server.access)
        if seeded is not None:
            source, target = open_store(str(seeded)), place.open()
            with ThreadPoolExecutor(16) as threads:
                list(threads.map(lambda info: target.put(info.name, source.get(info.name)), list_all(source, "")))
            target.close()
        yield place
    finally:
        server.kill()


class _server:
    """A registry process on the seeded store."""

    def __init__(self, place: Place, folder: Path, views: str) -> None:
        self._file = folder / "address.json"
        self._command = [sys.executable, "-m", "registry", "--server.listen", "127.0.0.1:0"]
        self._command += ["--server.metrics-listen", "", "--server.log-level", "error"]
        self._command += ["--server.address-file", str(self._file), "--store.views", str(folder / views)]
        self._environment = os.environ | place.environment

    def __enter__(self) -> str:
        self._file.unlink(missing_ok=True)
        self._process = subprocess.Popen(self._command, env=self._environment)
        while not self._file.exists():
            assert self._process.poll() is None, "the registry has ended"
            time.sleep(0.005)
        return str(json.loads(self._file.read_text())["grpc"])

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


async def _start(place: Place, folder: Path, views: str) -> float:
    """Seconds from the start of the process to its first response to a strong read."""
    began = time.monotonic()
    with _server(place, folder, views) as address:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = RegistryServiceStub(channel)
            while True:
                try:
                    await stub.GetTenant(rpc.GetTenantRequest(name=PARENT))
                    break
                except grpc.aio.AioRpcError as error:
                    # The server replays the log for longer than a call waits.
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
        return round(time.monotonic() - began, 2)


async def _calls(address: str, size: int, seconds: float) -> dict[str, Any]:
    words = words_of(size, _WORDS)
    strong = rpc.ResolveWordsRequest(parent=PARENT, words=words)
    cached = rpc.ResolveWordsRequest(parent=PARENT, words=words)
    cached.max_staleness.FromSeconds(3600)
    first = rpc.ListConceptsRequest(parent=PARENT, page_size=50)
    some = rpc.ListConceptsRequest(parent=PARENT, page_size=50, filter='labels.team = "t7"')
    rare = rpc.ListConceptsRequest(parent=PARENT, page_size=50, filter='labels.rare = "yes"')
    one = rpc.ListConceptsRequest(parent=PARENT, page_size=50, filter=f'display_name = "word {size - 1}"')
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = RegistryServiceStub(channel)
        answer = await stub.ResolveWords(strong)
        assert all(word.WhichOneof("result") == "version" for word in answer.words)
        found = {
            "page_of_50_ms": await _latency(lambda: stub.ListConcepts(first)),
            "page_of_5_percent_ms": await _latency(lambda: stub.ListConcepts(some)),
            "page_of_one_by_label_ms": await _latency(lambda: stub.ListConcepts(rare), 10),
            "page_of_one_by_name_ms": await _latency(lambda: stub.ListConcepts(one), 10),
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
                # By turns, so that other load on the machine affects both.
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
    """The median latency of sequential calls, in milliseconds."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        await call()
        times.append(time.perf_counter() - began)
    return round(median(times) * 1000, 2)


async def _rate(call: Callable[[], Awaitable[Any]], seconds: float, clients: int = 16) -> float:
    """Responses a second in a closed loop of `clients` clients."""
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
