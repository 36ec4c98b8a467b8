"""Measures pictures a second at saturation: ours over gRPC, our engine alone, the bare loop, and diffusers behind a
lock, in one run.

python -m benchmarks.generation.saturation --help
"""

import asyncio
import json
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np
import torch
from pseudoword.calls import errors
from pseudoword.channel import Endpoints
from pseudoword.client import Client
from pseudoword.registry.v1 import registry_pb2, resources_pb2

from benchmarks.generation import engine, limit
from benchmarks.generation.diffusers_baseline import DiffusersBaseline
from benchmarks.generation.workload import DrawRequest, mix, vectors
from benchmarks.servers import drawing
from diffusion.checkpoint import BaseModel
from diffusion.conversions import base_model
from diffusion.threads import Made, in_passing
from storage.tensors import write_tensors

_CLIENTS = 48
Words = Mapping[str, np.ndarray]


@click.command()
@click.option("--model", metavar="PATH_OR_ID", help="Checkpoint.  [default: the bundled miniature]")
@click.option("--device", default="cpu", show_default=True)
@click.option("--requests", default=96, show_default=True, help="Number of pictures of each contender in each round.")
@click.option(
    "--rounds", default=2, show_default=True, help="Number of rounds; in each, the contenders run one after the other."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON file to write the figures to.")
def main(model: str | None, device: str, requests: int, rounds: int, output: Path | None) -> None:
    """Measure throughput at saturation; figures are ratios within this run."""
    loaded = in_own_thread(lambda: BaseModel.load(model, device=device))
    words = vectors(loaded.spec.encoders[0].dims)
    baseline = in_own_thread(lambda: DiffusersBaseline(model, device, words))
    contenders: dict[str, Callable[[list[DrawRequest]], float]] = {
        "diffusers behind a lock": _timed(lambda workload: in_own_thread(lambda: baseline.draw(workload))),
        **{f"bare loop, {rows} rows": _bare(loaded, words, rows) for rows in (8, 16, 32)},
        "pseudoword's engine alone": lambda workload: engine.draw(loaded, words, workload),
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours, whole = drawing(stack, folder, model=model, device=device)
        client = stack.enter_context(Client(ours))
        publish(client, loaded, words)
        contenders["requests batched whole, over gRPC"] = _served(whole, stack)
        contenders["pseudoword over gRPC"] = _served(ours, stack)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(rounds + 1):
            workload = list(mix(requests if turn else 8, seed=turn))  # the first round is a warm-up
            for name, draw in contenders.items():
                took = draw(workload)
                if turn:
                    seconds[name].append(took)
                    click.echo(f"{name}: {requests / took:.2f} pictures a second", err=True)
    rates = {name: requests * rounds / sum(times) for name, times in seconds.items()}
    base, best = rates["diffusers behind a lock"], max(rates[name] for name in rates if name.startswith("bare"))
    click.echo("| contender | pictures a second | of diffusers | of the best bare loop |\n|---|---|---|---|")
    for name, rate in rates.items():
        click.echo(f"| {name} | {rate:.2f} | {rate / base:.2f} | {rate / best:.2f} |")
    if output is not None:
        about = {"requests": requests, "rounds": rounds, "device": device, "machine": platform.processor() or "unknown"}
        about["threads"] = torch.get_num_threads()
        output.write_text(json.dumps({"about": about, "pictures_a_second": rates, "seconds": seconds}, indent=1) + "\n")


def in_own_thread(work: Callable[[], Made]) -> Made:
    """The result of `work`, computed in a thread that ends afterwards: OpenMP threads that one contender leaves behind
    must not slow another."""
    return asyncio.run(in_passing(work))


def _timed(draw: Callable[[list[DrawRequest]], None]) -> Callable[[list[DrawRequest]], float]:
    def timed(workload: list[DrawRequest]) -> float:
        began = time.monotonic()
        draw(workload)
        return time.monotonic() - began

    return timed


def _bare(model: BaseModel, words: Words, rows: int) -> Callable[[list[DrawRequest]], float]:
    return _timed(lambda workload: in_own_thread(lambda: limit.draw(model, words, workload, rows)))


def publish(client: Client, model: BaseModel, words: Words) -> None:
    """Publishes the benchmark's words to the registry."""
    for name, tensor in words.items():
        version = resources_pb2.Version(base_model=base_model(model.spec))
        version.base_model.encoders[0].vectors = len(tensor)
        request = registry_pb2.PublishVersionRequest(
            parent=str(client.concept(name)),
            version=version,
            embedding=write_tensors({"text_encoder": tensor}),
            create_concept=True,
        )
        with errors():
            client.registry.PublishVersion(request)


def _served(endpoints: Endpoints, stack: ExitStack) -> Callable[[list[DrawRequest]], float]:
    client = stack.enter_context(Client(endpoints))
    threads = stack.enter_context(ThreadPoolExecutor(_CLIENTS))

    return _timed(lambda workload: [*threads.map(lambda one: draw_one(client, one), workload)].clear())


def draw_one(client: Client, request: DrawRequest) -> None:
    """Sends one request over gRPC and waits for its picture."""
    client.draw(
        request.prompt,
        seed=request.seed,
        steps=request.steps,
        guidance_scale=request.guidance,
        scheduler=request.scheduler,
        exact=False,
    )


if __name__ == "__main__":
    main()
