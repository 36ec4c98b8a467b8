"""Open-loop load: requests come at random moments, whether the ones before are answered or not.

python -m benchmarks.generation.arrivals --help
"""

import json
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
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
from benchmarks.servers import drawing
from diffusion.checkpoint import BaseModel

# Deadlines in times of a request's time alone on our engine.
DEADLINES = (1.5, 2.0, 3.0, 5.0)
_THREADS = 256
OURS, WHOLE, LOCK = "pseudoword", "requests batched whole", "diffusers behind a lock"


# Of the requests, in their order: seconds from when each was due, infinite where it was refused or failed.
Contender = Callable[[Sequence[Asked], Sequence[float]], list[float]]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one run has measured at one load: a line of the file. `alone_s` is each request's time alone on our engine,
    `latency_s` each contender's seconds, `took_s` how long each was at it."""

    load: float
    seed: int
    capacity: float
    alone_s: Sequence[float]
    latency_s: Mapping[str, Sequence[float]]
    took_s: Mapping[str, float]
    about: Mapping[str, Any]


@click.command()
@click.option("--model", metavar="PATH_OR_ID", help="Checkpoint.  [default: the bundled miniature]")
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--loads", default="0.3,0.6,1.0,1.5", show_default=True, help="Times the saturated throughput of the lock."
)
@click.option(
    "--requests", default="150", show_default=True, help="Requests at each load; one number for all, or each."
)
@click.option("--steps", default="10,15,20", show_default=True, help="Steps that requests ask for.")
@click.option("--capacity-requests", default=24, show_default=True, help="Requests that measure the lock's capacity.")
@click.option("--seed", default=0, show_default=True, help="Another one for each piece.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="FILE.jsonl, a line is added for each load; a table and a plot of all lines beside it.",
)
def main(
    model: str | None,
    device: str,
    loads: str,
    requests: str,
    steps: str,
    capacity_requests: int,
    seed: int,
    output: Path,
) -> None:
    """Latency, throughput and deadlines met under Poisson arrivals, of three contenders in one run.

    diffusers behind a lock (its load_textual_inversion for each request, as people do it), our engine with batches of
    whole requests, and our engine. Loads are relative to the first one's saturated throughput in this run; all get the
    same requests at the same moments. A request's deadline is a multiple of its own time alone on our engine, for all
    contenders alike; one that is refused has missed it. Several short runs into one file count as one long one.
    """
    about = {
        "steps": steps,
        "model": model or "miniature",
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    pieces = _read(output, about)
    choice = [int(text) for text in steps.split(",")]
    shares = [float(text) for text in loads.split(",")]
    counts = [int(text) for text in requests.split(",")]
    if len(counts) not in (1, len(shares)):
        raise click.BadParameter("is one number, or one for each load", param_hint="--requests")
    loaded = BaseModel.load(model, device="cpu")
    words = vectors(loaded.spec.encoders[0].dims)
    peer = Peer(model, device, words)
    peer.draw(mix(3, seed=99, steps=choice))
    began = time.monotonic()
    peer.draw(mix(capacity_requests, seed=100, steps=choice))
    capacity = capacity_requests / (time.monotonic() - began)
    click.echo(f"the lock's capacity: {capacity:.2f} pictures a second", err=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours, whole = drawing(stack, folder, model=model, device=device)
        client = stack.enter_context(Client(ours))
        publish(client, loaded, words)
        alone = _alone(client, mix(64, seed=7, steps=choice))
        contenders: dict[str, Contender] = {
            LOCK: lambda asked, due: _behind_a_lock(peer, asked, due),
            WHOLE: lambda asked, due: _by_clients(whole, asked, due),
            OURS: lambda asked, due: _by_clients(ours, asked, due),
        }
        for number, (load, count) in enumerate(zip(shares, counts * len(shares), strict=False)):
            draw = np.random.default_rng([seed, number])
            due = np.cumsum(draw.exponential(1 / (load * capacity), count)).tolist()
            asked = mix(count, seed=100 * seed + number, steps=choice)
            latency_s, took_s = {}, {}
            for name, contender in contenders.items():
                began = time.monotonic()
                latency_s[name] = [round(seconds, 4) for seconds in contender(asked, due)]
                took_s[name] = round(time.monotonic() - began, 4)
                click.echo(f"load {load:g}  {name}: {took_s[name]:.0f} s", err=True)
            piece = Piece(
                load=load,
                seed=seed,
                capacity=round(capacity, 4),
                alone_s=[round(alone[_kind(one)], 4) for one in asked],
                latency_s=latency_s,
                took_s=took_s,
                about=about,
            )
            pieces.append(piece)
            with output.open("a") as file:
                file.write(json.dumps(asdict(piece)) + "\n")
    found = summaries(pieces)
    output.with_suffix(".md").write_text(table(found))
    plot(found, output.with_suffix(".png"))
    click.echo(table(found))


def _read(path: Path, about: Mapping[str, Any]) -> list[Piece]:
    """The pieces that are there. Raises ClickException where they are of something else."""
    pieces = [Piece(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    if others := [piece.about for piece in pieces if piece.about != about]:
        raise click.ClickException(f"{path} holds what was measured with {others[0]}, and this is {about}")
    return pieces


def _by_clients(endpoints: Endpoints, asked: Sequence[Asked], due: Sequence[float]) -> list[float]:
    """Every request by a thread of its own, as a web server would call."""
    with Client(endpoints) as client, ThreadPoolExecutor(_THREADS) as threads:
        began = time.monotonic()

        def one(one: Asked, at: float) -> float:
            time.sleep(max(0.0, began + at - time.monotonic()))
            try:
                draw_one(client, one)
            except PseudowordError:
                return inf
            return time.monotonic() - began - at

        return list(threads.map(one, asked, due))


def _behind_a_lock(peer: Peer, asked: Sequence[Asked], due: Sequence[float]) -> list[float]:
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
        served.append(time.monotonic() - began - at)
    arriving.join()
    return served


def _alone(client: Client, asked: Sequence[Asked]) -> dict[tuple[int, bool], float]:
    """Seconds of a request with our server for itself, by steps and whether it is guided: the median of some."""
    times: dict[tuple[int, bool], list[float]] = {}
    for one in asked:
        own = times.setdefault(_kind(one), [])
        if len(own) < 3:
            began = time.monotonic()
            draw_one(client, one)
            own.append(time.monotonic() - began)
    return {kind: float(np.median(own)) for kind, own in times.items()}


def _kind(one: Asked) -> tuple[int, bool]:
    """What a request's time alone depends on."""
    return one.steps, one.guidance > 1


def summaries(pieces: Sequence[Piece]) -> dict[float, dict[str, dict[str, float]]]:
    """The figures of each load and contender, over all pieces."""
    found: dict[float, dict[str, dict[str, float]]] = {}
    for load in sorted({piece.load for piece in pieces}):
        own = [piece for piece in pieces if piece.load == load]
        found[load] = {name: _summary(own, name) for name in (LOCK, WHOLE, OURS)}
    return found


def _summary(pieces: Sequence[Piece], name: str) -> dict[str, float]:
    latencies = np.concatenate([piece.latency_s[name] for piece in pieces])
    alone = np.concatenate([piece.alone_s for piece in pieces])
    fine = latencies[np.isfinite(latencies)]
    p50, p95, p99 = np.percentile(fine, (50, 95, 99))
    row = {
        "requests": len(latencies),
        "p50_s": float(p50),
        "p95_s": float(p95),
        "p99_s": float(p99),
        "pictures_a_second": len(fine) / sum(piece.took_s[name] for piece in pieces),
        "refused": 1 - len(fine) / len(latencies),
    }
    return row | {f"met_{factor:g}": float(np.mean(latencies <= factor * alone)) for factor in DEADLINES}


def table(found: Mapping[float, Mapping[str, Mapping[str, float]]]) -> str:
    """The figures in markdown."""
    lines = [
        "| load | contender | requests | p50 s | p95 s | p99 s | pictures a second | met at "
        + " | ".join(f"{factor:g}x" for factor in DEADLINES)
        + " |",
        "|---|---|---|---|---|---|---|" + "---|" * len(DEADLINES),
    ]
    for load, rows in found.items():
        for name, row in rows.items():
            shares = " | ".join(f"{100 * row[f'met_{factor:g}']:.0f} %" for factor in DEADLINES)
            latencies = " | ".join(f"{row[key]:.2f}" for key in ("p50_s", "p95_s", "p99_s", "pictures_a_second"))
            lines.append(f"| {load:g} | {name} | {row['requests']:.0f} | {latencies} | {shares} |")
    return "\n".join(lines) + "\n"


def plot(found: Mapping[float, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """p99, throughput and deadlines met at 3 times the time alone, over the load."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loads = [*found]
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
