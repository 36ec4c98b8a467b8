"""Measures latency under open-loop load: requests arrive at random times, independently of earlier responses.

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

from benchmarks.generation.diffusers_baseline import DiffusersBaseline
from benchmarks.generation.saturation import draw_one, publish
from benchmarks.generation.workload import DrawRequest, mix, vectors
from benchmarks.servers import drawing
from diffusion.checkpoint import BaseModel

# Deadlines, as multiples of a request's time alone on our engine.
DEADLINES = (1.5, 2.0, 3.0, 5.0)
_THREADS = 256
OURS, WHOLE, LOCK = "pseudoword", "requests batched whole", "diffusers behind a lock"


# Returns for each request the seconds from its arrival to its response; infinite if it was refused or failed.
Contender = Callable[[Sequence[DrawRequest], Sequence[float]], list[float]]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The measurement of one run at one load: a line of the file. `alone_s` is each request's time alone on our engine,
    `latency_s` has each contender's latencies, `took_s` each contender's total time."""

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
    "--loads",
    default="0.3,0.6,1.0,1.5",
    show_default=True,
    help="Loads, as multiples of the baseline's saturated throughput.",
)
@click.option(
    "--requests",
    default="150",
    show_default=True,
    help="Number of requests at each load: one number for all loads, or one for each.",
)
@click.option("--steps", default="10,15,20", show_default=True, help="Numbers of steps of the requests.")
@click.option(
    "--capacity-requests",
    default=24,
    show_default=True,
    help="Number of requests that measure the baseline's capacity.",
)
@click.option("--seed", default=0, show_default=True, help="Seed; use another one for each run into one file.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="FILE.jsonl; a line for each load is appended, and a table and a plot of all lines are written beside it.",
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

    The contenders are the baseline (diffusers behind a lock, with load_textual_inversion for each request), our engine
    with batches of whole requests, and our engine. Loads are relative to the baseline's saturated throughput in this
    run. All contenders get the same requests at the same times. A request's deadline is a multiple of its time alone on
    our engine, the same for all contenders; a refused request has missed it. The lines of several runs in one file
    count as one run.
    """
    about = {
        "steps": steps,
        "model": model or "miniature",
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    measurements = _read(output, about)
    choice = [int(text) for text in steps.split(",")]
    shares = [float(text) for text in loads.split(",")]
    counts = [int(text) for text in requests.split(",")]
    if len(counts) not in (1, len(shares)):
        raise click.BadParameter("must be one number, or one for each load", param_hint="--requests")
    loaded = BaseModel.load(model, device="cpu")
    words = vectors(loaded.spec.encoders[0].dims)
    baseline = DiffusersBaseline(model, device, words)
    baseline.draw(mix(3, seed=99, steps=choice))
    began = time.monotonic()
    baseline.draw(mix(capacity_requests, seed=100, steps=choice))
    capacity = capacity_requests / (time.monotonic() - began)
    click.echo(f"the baseline's capacity: {capacity:.2f} pictures a second", err=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours, whole = drawing(stack, folder, model=model, device=device)
        client = stack.enter_context(Client(ours))
        publish(client, loaded, words)
        alone = _times_alone(client, mix(64, seed=7, steps=choice))
        contenders: dict[str, Contender] = {
            LOCK: lambda workload, due: _serve_in_order(baseline, workload, due),
            WHOLE: lambda workload, due: _call_concurrently(whole, workload, due),
            OURS: lambda workload, due: _call_concurrently(ours, workload, due),
        }
        for number, (load, count) in enumerate(zip(shares, counts * len(shares), strict=False)):
            draw = np.random.default_rng([seed, number])
            due = np.cumsum(draw.exponential(1 / (load * capacity), count)).tolist()
            workload = mix(count, seed=100 * seed + number, steps=choice)
            latency_s, took_s = {}, {}
            for name, contender in contenders.items():
                began = time.monotonic()
                latency_s[name] = [round(seconds, 4) for seconds in contender(workload, due)]
                took_s[name] = round(time.monotonic() - began, 4)
                click.echo(f"load {load:g}  {name}: {took_s[name]:.0f} s", err=True)
            measurement = Measurement(
                load=load,
                seed=seed,
                capacity=round(capacity, 4),
                alone_s=[round(alone[_kind(one)], 4) for one in workload],
                latency_s=latency_s,
                took_s=took_s,
                about=about,
            )
            measurements.append(measurement)
            with output.open("a") as file:
                file.write(json.dumps(asdict(measurement)) + "\n")
    found = summaries(measurements)
    output.with_suffix(".md").write_text(table(found))
    plot(found, output.with_suffix(".png"))
    click.echo(table(found))


def _read(path: Path, about: Mapping[str, Any]) -> list[Measurement]:
    """The measurements in the file. Raises ClickException if they have other settings."""
    measurements = [Measurement(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    if others := [measurement.about for measurement in measurements if measurement.about != about]:
        raise click.ClickException(f"{path} has measurements with the settings {others[0]}; this run has {about}")
    return measurements


def _call_concurrently(endpoints: Endpoints, workload: Sequence[DrawRequest], due: Sequence[float]) -> list[float]:
    """Sends each request at its time, in its own thread, as a web server would."""
    with Client(endpoints) as client, ThreadPoolExecutor(_THREADS) as threads:
        began = time.monotonic()

        def send(request: DrawRequest, at: float) -> float:
            time.sleep(max(0.0, began + at - time.monotonic()))
            try:
                draw_one(client, request)
            except PseudowordError:
                return inf
            return time.monotonic() - began - at

        return list(threads.map(send, workload, due))


def _serve_in_order(baseline: DiffusersBaseline, workload: Sequence[DrawRequest], due: Sequence[float]) -> list[float]:
    """Serves requests in the order of their arrival, with an unbounded queue."""
    queue: SimpleQueue[tuple[DrawRequest, float]] = SimpleQueue()
    began = time.monotonic()

    def arrive() -> None:
        for one, at in zip(workload, due, strict=True):
            time.sleep(max(0.0, began + at - time.monotonic()))
            queue.put((one, at))

    arriving = threading.Thread(target=arrive)
    arriving.start()
    served = []
    for _ in workload:
        one, at = queue.get()
        baseline.draw([one])
        served.append(time.monotonic() - began - at)
    arriving.join()
    return served


def _times_alone(client: Client, workload: Sequence[DrawRequest]) -> dict[tuple[int, bool], float]:
    """Median seconds of a request on our idle server, by steps and guidance."""
    times: dict[tuple[int, bool], list[float]] = {}
    for one in workload:
        own = times.setdefault(_kind(one), [])
        if len(own) < 3:
            began = time.monotonic()
            draw_one(client, one)
            own.append(time.monotonic() - began)
    return {kind: float(np.median(own)) for kind, own in times.items()}


def _kind(one: DrawRequest) -> tuple[int, bool]:
    """The properties that a request's time alone depends on: steps, and whether it is guided."""
    return one.steps, one.guidance > 1


def summaries(measurements: Sequence[Measurement]) -> dict[float, dict[str, dict[str, float]]]:
    """The figures of each load and contender, over all measurements."""
    found: dict[float, dict[str, dict[str, float]]] = {}
    for load in sorted({measurement.load for measurement in measurements}):
        own = [measurement for measurement in measurements if measurement.load == load]
        found[load] = {name: _summary(own, name) for name in (LOCK, WHOLE, OURS)}
    return found


def _summary(measurements: Sequence[Measurement], name: str) -> dict[str, float]:
    latencies = np.concatenate([measurement.latency_s[name] for measurement in measurements])
    alone = np.concatenate([measurement.alone_s for measurement in measurements])
    fine = latencies[np.isfinite(latencies)]
    p50, p95, p99 = np.percentile(fine, (50, 95, 99))
    row = {
        "requests": len(latencies),
        "p50_s": float(p50),
        "p95_s": float(p95),
        "p99_s": float(p99),
        "pictures_a_second": len(fine) / sum(measurement.took_s[name] for measurement in measurements),
        "refused": 1 - len(fine) / len(latencies),
    }
    return row | {f"met_{factor:g}": float(np.mean(latencies <= factor * alone)) for factor in DEADLINES}


def table(found: Mapping[float, Mapping[str, Mapping[str, float]]]) -> str:
    """The figures as a Markdown table."""
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
    """Plots p99, throughput, and the share of deadlines met at 3 times the time alone, over the load."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loads = [*found]
    panels = (("p99_s", "p99, seconds"), ("pictures_a_second", "pictures a second"), ("met_3", "deadlines met at 3x"))
    for axes, (key, title) in zip(figure.subplots(1, 3), panels, strict=True):
        for name in (LOCK, WHOLE, OURS):
            axes.plot(loads, [rows[name][key] for rows in found.values()], marker="o", label=name)
        axes.set_title(title)
        axes.set_xlabel("load, times the capacity of the baseline")
        if key == "p99_s":
            axes.set_yscale("log")
            axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
