"""Measures the parts of the engine's time at saturation, the cost of resolving a cached word, and the time until a
moved alias takes effect.

python -m benchmarks.generation.overhead --help
"""

import asyncio
import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import click
import grpc.aio
import numpy as np
from prometheus_client import CollectorRegistry
from pseudoword.client import Client
from pseudoword.names import WordRef
from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub

from benchmarks.generation.engine import checked, drawn, make
from benchmarks.generation.saturation import publish
from benchmarks.generation.workload import mix, vectors
from diffusion import decode, denoise
from diffusion.checkpoint import BaseModel
from diffusion.encoder import PromptEncoder
from rpc.identity import ANONYMOUS
from service.metrics import EngineMetrics
from service.request.prepare import RequestPreparer
from service.request.request import Request
from service.settings import WordSettings
from service.words.registry_watch import RegistryWatch
from service.words.resolution_cache import ResolutionCache
from service.words.resolver import WordResolver
from service.words.tensor_cache import TensorCache
from standalone.servers import Servers

MOVING = "moving"
_MOVES = 40


@click.command()
@click.option("--model", metavar="PATH_OR_ID", help="Checkpoint.  [default: the bundled miniature]")
@click.option("--device", default="cpu", show_default=True)
@click.option("--requests", default=64, show_default=True, help="Number of pictures.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON file to write the figures to.")
def main(model: str | None, device: str, requests: int, output: Path | None) -> None:
    """Draw the benchmark's workload in this process and time its parts, resolve cached words, and move an alias many
    times."""
    loaded = BaseModel.load(model, device=device)
    words = vectors(loaded.spec.encoders[0].dims)
    with (
        tempfile.TemporaryDirectory() as folder,
        Servers(Path(folder), model=model) as servers,
        Client(servers.endpoints) as client,
    ):
        for some in (words, {MOVING: words["word0"]}, {MOVING: words["word1"]}):
            publish(client, loaded, some)
        found = asyncio.run(_measured(loaded, client, servers.endpoints.registry, requests))
    for part, share in found["shares"].items():
        click.echo(f"{part:<32} {100 * share:5.1f} %")
    click.echo(
        f"resolving a cached word: p50 {found['attach_ms']['p50']:.3f} ms, p99 {found['attach_ms']['p99']:.3f} ms"
    )
    moved = found["moved_s"]
    click.echo(f"a moved alias takes effect after: p50 {moved['p50']:.2f} s, at most {moved['most']:.2f} s")
    if output is not None:
        output.write_text(json.dumps(found, indent=1) + "\n")


async def _measured(model: BaseModel, client: Client, registry: str, requests: int) -> dict[str, Any]:
    async with grpc.aio.insecure_channel(registry) as channel:
        stub: Any = RegistryServiceStub(channel)
        resolutions: ResolutionCache[Any] = ResolutionCache(1000)
        metrics = EngineMetrics(CollectorRegistry())
        cache: TensorCache[str] = TensorCache(2**28)
        words = WordResolver(stub, model, resolutions, cache, metrics, WordSettings())
        watch = asyncio.create_task(RegistryWatch(stub, resolutions).run())
        await asyncio.sleep(2.5)  # until the watch has confirmed its position
        attach = await _resolve_times(words)
        moved = [await _move_time(words, client, 1 + number % 2) for number in range(_MOVES)]
        engine = make(model)
        prepared = [await _prepared(RequestPreparer(model, words), model, number) for number in range(requests)]
        for one in prepared:
            engine.submit(one)
        with _stopwatches() as spent:
            await asyncio.to_thread(engine.start)
            spent.clear()  # without the warm-up
            began = time.perf_counter()
            await asyncio.gather(*map(drawn, prepared))
            whole = time.perf_counter() - began
        await asyncio.to_thread(engine.stop)
        watch.cancel()
    parts = {
        "the denoiser": spent["predict"],
        "solvers, schedulers, guidance": spent["step"] - spent["predict"],
        "text encoding": spent["encode"],
        "decoding": spent["decode"],
    }
    parts["everything else"] = whole - sum(parts.values())
    return {
        "seconds": whole,
        "pictures_a_second": requests / whole,
        "shares": {part: seconds / whole for part, seconds in parts.items()},
        "attach_ms": {f"p{q}": float(np.percentile(attach, q) * 1000) for q in (50, 99)},
        "moved_s": {"p50": float(np.median(moved)), "most": max(moved)},
    }


async def _resolve_times(resolver: WordResolver) -> list[float]:
    """The seconds of resolving one of eight cached words."""
    times = []
    for number in range(2008):
        ref = WordRef(None, f"word{number % 8}")
        began = time.perf_counter()
        await resolver.resolve("default", [ref], ANONYMOUS, field="prompt")
        times.append(time.perf_counter() - began)
    return times[8:]


async def _move_time(resolver: WordResolver, client: Client, version: int) -> float:
    """The seconds from the response to a move of an alias until a request is resolved to the new version."""
    await asyncio.sleep(random.uniform(0, 1))  # the watch confirms its position once a second
    await asyncio.to_thread(client.set_alias, MOVING, "production", version)
    began = time.perf_counter()
    while True:
        (word,) = await resolver.resolve("default", [WordRef(None, MOVING)], ANONYMOUS, field="prompt")
        if word.use.version.endswith(f"/versions/{version}"):
            return time.perf_counter() - began
        await asyncio.sleep(0.005)


async def _prepared(preparer: RequestPreparer, model: BaseModel, number: int) -> Request:
    params = checked(mix(number + 1, seed=3)[-1], model)
    return await preparer.prepare(params, ANONYMOUS, arrived=time.monotonic())


@contextmanager
def _stopwatches() -> Iterator[dict[str, float]]:
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*arguments, **named)
            finally:
                spent[name] += time.perf_counter() - began

        return run

    from diffusion.denoiser import LocalDenoiser

    with (
        mock.patch.object(LocalDenoiser, "predict", timed("predict", LocalDenoiser.predict)),
        mock.patch.object(PromptEncoder, "encode", timed("encode", PromptEncoder.encode)),
        mock.patch.object(denoise, "step", timed("step", denoise.step)),
        mock.patch.object(decode, "decode", timed("decode", decode.decode)),
    ):
        yield spent


if __name__ == "__main__":
    main()
