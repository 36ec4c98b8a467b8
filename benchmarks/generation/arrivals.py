"""Open-loop load: requests come at random moments, whether the ones before are answered or not.

python -m benchmarks.generation.arrivals --help
"""

import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import click
import numpy as np
import torch
from pseudoword.channel import Endpoints
from pseudoword.client import Client
from pseudoword.errors import PseudowordError

from benchmarks.generation.peer import Peer
from benchmarks.generation.saturation import draw_one, publish
from benchmarks.generation.workload import Asked, mix, vectors
from diffusion.checkpoint import BaseModel
from standalone.servers import Servers

# Deadlines in times of a request's time alone on its contender.
DEADLINES = (1.5, 2.0, 3.0, 5.0)
_THREADS = 256
OURS, WHOLE, LOCK = "pseudoword", "requests batched whole", "diffusers behind a lock"


@dataclass(frozen=True, kw_only=True)
class Served:
    """One request at one load: seconds from when it was due, infinite where it was refused or failed."""

    asked: Asked
    latency_s: float


Contender = Callable[[Sequence[Asked], Sequence[float]], list[Served]]


@click.command()
@click.option("--model", metavar="PATH_OR_ID", help="Checkpoint.  [default: the bundled miniature]")
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--loads", default="0.3,0.6,1.0,1.5", show_default=True, help="Times the saturated throughput of the lock."
)
@click.option("--seconds", default=16.0, show_default=True, help="How long requests come, at each load.")
@click.option("--capacity-requests", default=12, show_default=True, help="Requests that measure the lock's capacity.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="FILE.json; a table and a plot beside it."
)
def main(model: str | None, device: str, loads: str, seconds: float, capacity_requests: int, output: Path) -> None:
    """Latency, throughput and deadlines met under Poisson arrivals, of three contenders in one run.

    diffusers behind a lock (its load_textual_inversion for each request, as people do it), our engine with batches of
    whole requests, and our engine. Loads are relative to the first one's saturated throughput; all get the same
    requests at the same moments. A request's deadline is a multiple of its own time alone on our engine, for all
    contenders alike; one that is refused has missed it.
    """
    loaded = BaseModel.load(model, device="cpu")
    words = vectors(loaded.spec.encoders[0].dims)
    peer = Peer(model, device, words)
    peer.draw(mix(3, seed=99))
    began = time.monotonic()
    peer.draw(mix(capacity_requests, seed=100))
    capacity = capacity_requests / (time.monotonic() - began)
    click.echo(f"the lock's capacity: {capacity:.2f} pictures a second", err=True)
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = stack.enter_context(Servers(folder, model=model))
        client = stack.enter_context(Client(servers.endpoints))
        publish(client, loaded, words)
        whole = _whole(stack, folder, servers.endpoints, model, device)
        alone = _alone(client, mix(64, seed=7))
        contenders: dict[str, Contender] = {
            LOCK: lambda asked, due: _behind_a_lock(peer, asked, due),
            WHOLE: lambda asked, due: _by_clients(whole, asked, due),
            OURS: lambda asked, due: _by_clients(servers.endpoints, asked, due),
        }
        for number, load in enumerate(float(text) for text in loads.split(",")):
            draw = np.random.default_rng(number)
            count = max(8, round(load * capacity * seconds))
            due = np.cumsum(draw.exponential(1 / (load * capacity), count)).tolist()
            asked = mix(count, seed=number)
            for name, contender in contenders.items():
                began = time.monotonic()
                served = contender(asked, due)
                row = _summary(served, alone, time.monotonic() - began)
                found.setdefault(f"{load:g}", {})[name] = row
                click.echo(f"load {load:g}  {name}: " + "  ".join(f"{k} {v:.3g}" for k, v in row.items()), err=True)
    about = {
        "capacity_of_the_lock": capacity,
        "seconds": seconds,
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "command": "python -m benchmarks.generation.arrivals " + " ".join(sys.argv[1:]),
    }
    output.write_text(json.dumps({"about": about, "loads": found}, indent=1) + "\n")
    output.with_suffix(".md").write_text(table(found))
    plot(found, output.with_suffix(".png"))
    click.echo(table(found))


def _by_clients(endpoints: Endpoints, asked: Sequence[Asked], due: Sequence[float]) -> list[Served]:
    """Every request by a thread of its own, as a web server would call."""
    with Client(endpoints) as client, ThreadPoolExecutor(_THREADS) as threads:
        began = time.monotonic()

        def one(one: Asked, at: float) -> Served:
            time.sleep(max(0.0, began + at - time.monotonic()))
            try:
                draw_one(client, one)
            except PseudowordError:
                return Served(asked=one, latency_s=inf)
            return Served(asked=one, latency_s=time.monotonic() - began - at)

        return list(threads.map(one, asked, due))


def _behind_a_lock(peer: Peer, asked: Sequence[Asked], due: Sequence[float]) -> list[Served]:
    """First come, first served, with a queue without an end."""
    queue: SimpleQueue[tuple[Asked, float]] = SimpleQueue()
    began = time.monotonic()

    def arrive() -> None:
        for one, at in zip(asked, due, strict=True):
            time.sleep(max(0.0, began + at - time.monotonic()))
            queue.put((one, at))

    arriving = threading.Thread(target=arrive)
    arriving.start()
    served = []
    for _ in asked:
        one, at = queue.get()
        peer.draw([one])
        served.append(Served(asked=one, latency_s=time.monotonic() - began - at))
    arriving.join()
    return served


def _alone(client: Client, asked: Sequence[Asked]) -> dict[tuple[int, bool], float]:
    """Seconds of a request with our server for itself, by steps and whether it is guided: the median of some."""
    times: dict[tuple[int, bool], list[float]] = {}
    for one in asked:
        own = times.setdefault((one.steps, one.guidance > 1), [])
        if len(own) < 3:
            began = time.monotonic()
            draw_one(client, one)
            own.append(time.monotonic() - began)
    return {kind: float(np.median(own)) for kind, own in times.items()}


def _summary(served: Sequence[Served], alone: dict[tuple[int, bool], float], took_s: float) -> dict[str, float]:
    latencies = np.array([one.latency_s for one in served])
    fine = latencies[np.isfinite(latencies)]
    p50, p95, p99 = np.percentile(fine, (50, 95, 99))
    own = np.array([alone[one.asked.steps, one.asked.guidance > 1] for one in served])
    row = {
        "p50_s": float(p50),
        "p95_s": float(p95),
        "p99_s": float(p99),
        "pictures_a_second": len(fine) / took_s,
        "refused": 1 - len(fine) / len(served),
    }
    return row | {f"met_{factor:g}": float(np.mean(latencies <= factor * own)) for factor in DEADLINES}


def _whole(stack: ExitStack, folder: Path, endpoints: Endpoints, model: str | None, device: str) -> Endpoints:
    """A server of requests batched whole beside the others; idle while they are asked."""
    address_file = folder / "whole.json"
    command = [sys.executable, "-m", "benchmarks.generation.request_level", "--registry.address", endpoints.registry]
    command += ["--model.device", device, "--server.address-file", str(address_file), "--server.listen", "127.0.0.1:0"]
    command += [] if model is None else ["--model.source", model]
    log = stack.enter_context((folder / "whole.log").open("wb"))
    process = subprocess.Popen(command, stdout=log, stderr=log)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    while not address_file.exists():
        if process.poll() is not None:
            raise click.ClickException(f"the server ended:\n{(folder / 'whole.log').read_text()[-2000:]}")
        time.sleep(0.1)
    return replace(endpoints, generation=json.loads(address_file.read_text())["grpc"])


def table(found: dict[str, dict[str, Any]]) -> str:
    """The figures in markdown."""
    lines = [
        "| load | contender | p50 s | p99 s | pictures a second | met at "
        + " | ".join(f"{factor:g}x" for factor in DEADLINES)
        + " |",
        "|---|---|---|---|---|" + "---|" * len(DEADLINES),
    ]
    for load, rows in found.items():
        for name, row in rows.items():
            shares = " | ".join(f"{100 * row[f'met_{factor:g}']:.0f} %" for factor in DEADLINES)
            figures = f"{row['p50_s']:.2f} | {row['p99_s']:.2f} | {row['pictures_a_second']:.2f}"
            lines.append(f"| {load} | {name} | {figures} | {shares} |")
    return "\n".join(lines) + "\n"


def plot(found: dict[str, dict[str, Any]], path: Path) -> None:
    """p99, throughput and deadlines met at 3 times the time alone, over the load."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loads = [float(load) for load in found]
    panels = (("p99_s", "p99, seconds"), ("pictures_a_second", "pictures a second"), ("met_3", "deadlines met at 3x"))
    for axes, (key, title) in zip(figure.subplots(1, 3), panels, strict=True):
        for name in (LOCK, WHOLE, OURS):
            axes.plot(loads, [rows[name][key] for rows in found.values()], marker="o", label=name)
        axes.set_title(title)
        axes.set_xlabel("load, times the capacity of the lock")
        if key == "p99_s":
            axes.set_yscale("log")
            axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
