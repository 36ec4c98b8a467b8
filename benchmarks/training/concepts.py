"""Measures training of several concepts together: throughput and memory by their number, and the jobs of eight tenants
together and one after the other.

    python -m benchmarks.training.concepts [--rows 4] [--steps N] [--threads N] [-o FILE.json] [--plot FILE.png]

One run on one machine measures: the bare model's forward and backward pass by rows (inputs prepared, without sampling
and optimiser); the engine with 1 to 16 concepts, as the worker ticks it; the jobs of eight tenants through fair queue,
tick sizer and engine, together and one after the other; the cost of a checkpoint. The model is the bundled one on the
CPU.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import numpy as np
import torch
from pseudoword.names import WordRef

from benchmarks.training.measure import make_case, say, task_of
from diffusion.checkpoint import BaseModel
from diffusion.encoder import PromptEncoder
from diffusion.prompt import parse
from trainer.training.initializers import FromWords
from trainer.training.recipe import recipes
from trainer.training.run import Run, Task
from trainer.worker.checkpoint_codec import read_checkpoint, write_checkpoint
from trainer.worker.drr import DeficitRoundRobin, Entry
from trainer.worker.engine import Engine
from trainer.worker.tick_size import TickSizer

SIZES = (1, 2, 4, 8, 16, 32)
CONCEPTS = (1, 2, 4, 8, 16)
TENANTS = 8
WORD = WordRef(None, "w")


def repeated(work: Callable[[], object], times: int = 5) -> float:
    """The median seconds of a call of `work`, without the first call."""
    work()
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return median(found)


def bare(model: BaseModel, rows: int) -> float:
    """The seconds of one forward and backward pass of encoder and UNet for `rows` rows of one word."""
    generator = torch.Generator().manual_seed(0)
    cells = model.spec.sample_size_px // model.spec.vae_scale
    noisy = torch.randn(rows, model.spec.latent_channels, cells, cells, generator=generator)
    times = torch.arange(rows) * 999 // max(1, rows - 1)
    vectors = torch.zeros(1, model.spec.encoders[0].dims, requires_grad=True)
    encoder, prompts = PromptEncoder(model), [parse("a photo of a <w>")] * rows

    def work() -> None:
        hidden = encoder.encode(prompts, {WORD: vectors})
        torch.autograd.grad(model.unet(noisy, times, hidden).sample.square().mean(), vectors)

    return repeated(work)


def own_task(seed: int, rows: int, steps: int) -> Task:
    recipe = replace(recipes("miniature")["object"], rows=rows, steps=steps)
    return replace(task_of(make_case(2_000 + seed), FromWords(words="toy"), recipe), seed=seed)


def throughput(engine: Engine, concepts: int, rows: int) -> float:
    """Rows a second with `concepts` concepts in each tick, a whole step of each."""
    runs = [engine.prepare(own_task(seed, rows, 1_000)) for seed in range(concepts)]
    seconds = repeated(lambda: engine.tick([(run, run.rows_left) for run in runs]), times=4)
    return concepts * rows / seconds


def together(engine: Engine, tasks: Sequence[Task]) -> list[float]:
    """The seconds until each tenant's job has ended, when they are ticked together as in the worker."""
    queue, sizer = DeficitRoundRobin(quantum_rows=2_000), TickSizer()
    began = time.perf_counter()
    runs: dict[str, Run] = {}
    for index, task in enumerate(tasks):
        name = str(index)
        runs[name] = engine.prepare(task)
        queue.join(name, Entry(tenant=f"t{index}", priority=0, order=index))
    ended = []
    while runs:
        wanted = {name: run.rows_left for name, run in runs.items()}
        granted = queue.grant(wanted, sizer.useful_rows(engine.max_rows, sum(wanted.values())))
        tick = time.perf_counter()
        engine.tick([(runs[name], count) for name, count in granted.items()])
        sizer.observe(sum(granted.values()), time.perf_counter() - tick)
        for name in granted:
            if runs[name].done:
                ended.append(time.perf_counter() - began)
                queue.leave(name)
                del runs[name]
    return ended


def one_after_the_other(engine: Engine, tasks: Sequence[Task]) -> list[float]:
    began, ended = time.perf_counter(), []
    for task in tasks:
        run = engine.prepare(task)
        while not run.done:
            engine.tick([(run, run.rows_left)])
        ended.append(time.perf_counter() - began)
    return ended


def checkpoint_ms(engine: Engine, rows: int) -> dict[str, float]:
    run = engine.prepare(own_task(0, rows, 1_000))
    engine.tick([(run, run.rows_left)])
    run.losses = [0.05] * 5_000  # as in a long job
    data = write_checkpoint(run.state(0.0))
    return {
        "bytes": len(data),
        "state": 1000 * repeated(lambda: run.state(0.0)),
        "write": 1000 * repeated(lambda: write_checkpoint(run.state(0.0))),
        "read": 1000 * repeated(lambda: read_checkpoint(data)),
    }


def held_bytes(engine: Engine, rows: int) -> float:
    """The bytes that a concept holds between ticks: vectors, optimiser moments, latents."""
    run = engine.prepare(own_task(0, rows, 10))
    engine.tick([(run, run.rows_left)])
    kept = [*run.leaves, run.latents.means, run.latents.deviations, run.latents.weights]
    kept += [tensor for state in run._optimiser.state.values() for tensor in state.values()]
    return float(sum(tensor.numel() * tensor.element_size() for tensor in kept))


def measure(rows: int, steps: int) -> dict[str, Any]:
    model = BaseModel.load(None)
    engine = Engine(model)
    peak = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]
    rates = {}
    for concepts in CONCEPTS:
        rates[concepts] = throughput(engine, concepts, rows)
        peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    bare_s = {size: bare(model, size) for size in SIZES}
    tasks = [own_task(seed, rows, steps) for seed in range(TENANTS)]
    one_after_the_other(engine, tasks[:1])  # warm-up
    return {
        "rows": rows,
        "steps": steps,
        "bare_s": bare_s,
        "concepts_rows_a_second": rates,
        "peak_mib": dict(zip((0, *CONCEPTS), peak, strict=True)),
        "held_bytes": held_bytes(engine, rows),
        "together_s": together(engine, tasks),
        "after_each_other_s": one_after_the_other(engine, tasks),
        "checkpoint": checkpoint_ms(engine, rows),
    }


def report(found: dict[str, Any]) -> None:
    rows = found["rows"]
    say("| rows | bare pass, ms | rows a second | engine: concepts | rows a second | peak memory, MiB |")
    say("|---|---|---|---|---|---|")
    for size, seconds in found["bare_s"].items():
        concepts = size // rows
        rate = found["concepts_rows_a_second"].get(concepts) if size % rows == 0 else None
        own = f"{concepts} | {rate:.1f} | {found['peak_mib'][concepts]:.0f}" if rate else "- | - | -"
        say(f"| {size} | {1000 * seconds:.0f} | {size / seconds:.1f} | {own} |")
    together_s, after = found["together_s"], found["after_each_other_s"]
    say(f"\n{TENANTS} tenants, a job of {found['steps']} steps of {rows} rows each:")
    say("| how | first job done, s | last job done, s | first, as a share of one after the other |\n|---|---|---|---|")
    say(f"| one after the other | {after[0]:.1f} | {after[-1]:.1f} | {after[0] / after[-1]:.2f} |")
    say(f"| together | {together_s[0]:.1f} | {together_s[-1]:.1f} | {together_s[0] / after[-1]:.2f} |")
    kept = found["checkpoint"]
    held, size = found["held_bytes"] / 1024, kept["bytes"] / 1024
    say(f"\na concept holds {held:.0f} KiB between ticks; a checkpoint of a job of 5,000 steps is {size:.0f} KiB:")
    say(f"{kept['state']:.2f} ms to take, {kept['write']:.2f} to write, {kept['read']:.2f} to read")


def plot(found: dict[str, Any], file: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    sizes = np.array(list(found["bare_s"]))
    left.plot(sizes, sizes / np.array(list(found["bare_s"].values())), "o-", label="bare model")
    concepts = np.array(list(found["concepts_rows_a_second"]))
    left.plot(concepts * found["rows"], list(found["concepts_rows_a_second"].values()), "s-", label="engine")
    left.set(xlabel="rows of a tick", ylabel="rows a second", xscale="log", ylim=(0, None))
    left.legend()
    for name, key in (("together", "together_s"), ("one after the other", "after_each_other_s")):
        right.step([0, *found[key]], range(len(found[key]) + 1), where="post", label=name)
    right.set(xlabel="seconds", ylabel="jobs done")
    right.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    found = measure(arguments.rows, arguments.steps)
    report(found)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.plot is not None:
        plot(found, arguments.plot)


if __name__ == "__main__":
    main()
