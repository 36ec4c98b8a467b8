"""Measures whether torch.compile is worth it in training: ticks of the engine with and without it, by turns, in one
process.

    python -m benchmarks.training.compiled [--threads N] [--device cuda]

Prints the table of docs/measurements/training.md. The first tick includes the compilation.
"""

import argparse
import time
from dataclasses import replace
from statistics import median

import torch

from benchmarks.training.measure import make_case, say, task_of, tick
from diffusion.checkpoint import BaseModel
from trainer.training.initializers import FromWords
from trainer.training.recipe import recipes
from trainer.training.run import Run
from trainer.worker.engine import Engine

ROWS = (4, 8, 16)
TICKS = 15


def timed(engine: Engine, run: Run) -> float:
    """Seconds of a tick."""
    began = time.perf_counter()
    tick(engine, [run])  # reads the losses, so the device has finished
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.compiled",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, help="number of CPU threads [default: all]")
    parser.add_argument("--device", default="cpu", help="in torch's notation [default: cpu]")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    plain_model, fused = (BaseModel.load(None, device=options.device) for _ in range(2))
    fused.unet.compile(dynamic=True)
    engines = [Engine(model) for model in (plain_model, fused)]
    say("| rows | a tick, ms | compiled, ms | the first one, s |\n|---|---|---|---|")
    for rows in ROWS:
        recipe = replace(recipes("miniature")["object"], rows=rows, steps=TICKS + 1)
        runs = [engine.prepare(task_of(make_case(0), FromWords(words="toy"), recipe)) for engine in engines]
        _, first = (timed(engine, run) for engine, run in zip(engines, runs, strict=True))
        pairs = [[timed(engine, run) for engine, run in zip(engines, runs, strict=True)] for _ in range(TICKS)]
        plain, compiled = (1000 * median(each) for each in zip(*pairs, strict=True))
        say(f"| {rows} | {plain:.0f} | {compiled:.0f} | {first:.1f} |")


if __name__ == "__main__":
    main()
