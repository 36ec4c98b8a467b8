"""Compares starts: held-out losses after some steps, from the default word, the best word and the learned start.

    python -m benchmarks.training.starts [--toys N] [--styles N] [--steps 0,10,50] [-o benchmarks/training/starts.json]

The toys and styles are withheld from all trainings of the bundled model and of its learned start. Each number of steps
is a separate run with the default recipe's rate and schedule. Prints the tables of docs/measurements/training.md.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.miniature.words import styles, toys
from benchmarks.training.measure import Case, Measure, engine_of, make_case, say, style_case, task_of, train
from diffusion.checkpoint import BaseModel
from trainer.training.initializers import BestWord, FromVectors, FromWords, Initializer, LearnedStart
from trainer.training.recipe import recipes
from trainer.training.templates import STARTS
from trainer.worker.engine import Engine


def starts(engine: Engine, kind: str) -> Mapping[str, Initializer]:
    """The compared starts, by their names in the tables."""
    usual = engine.initializers.words.first_of(STARTS[kind])
    return {
        f"the word *{usual}*": FromWords(words=usual),
        "the best word": BestWord(usual=usual),
        "the learned start": LearnedStart(kind=kind, usual=usual),
    }


def losses_of(engine: Engine, measure: Measure, case: Case, kind: str, steps: Sequence[int]) -> Mapping[str, Any]:
    """For each start the held-out loss after each number of steps, the chosen start, and the seconds until the initial
    vectors are known."""
    found: dict[str, Any] = {}
    for name, start in starts(engine, kind).items():
        task = task_of(case, start, recipes("miniature")[kind])
        began = time.perf_counter()
        run = engine.prepare(task)
        seconds = time.perf_counter() - began
        given = replace(task, start=FromVectors(vectors=run.initial().vectors))
        runs = {
            count: engine.prepare(replace(given, recipe=replace(task.recipe, steps=count))) for count in steps if count
        }
        found[name] = {"runs": runs | {0: run}, "chosen": run.initial().chosen, "seconds": seconds}
    train(engine, [run for row in found.values() for count, run in row["runs"].items() if count])
    for row in found.values():
        runs = row.pop("runs")
        ends = {count: runs[count].learned() if count else runs[0].initial() for count in steps}
        row["losses"] = {str(count): measure.loss(case, torch.from_numpy(end.vectors)) for count, end in ends.items()}
    return found


def table(cases: Sequence[Mapping[str, Any]], steps: Sequence[int]) -> None:
    """Prints the means over the cases, and the number of cases in which a start is worse than the default word after as
    many steps."""
    usual = next(iter(cases[0]))
    heads = [f"{count} steps | of these worse" for count in steps]
    say(f"| start | {' | '.join(heads)} | s until it is known |")
    say("|---" * (2 * len(steps) + 2) + "|")
    for name in cases[0]:
        cells = []
        for count in map(str, steps):
            losses = np.array([case[name]["losses"][count] for case in cases])
            others = np.array([case[usual]["losses"][count] for case in cases])
            cells.append(f"{losses.mean():.6f} | {int((losses > others).sum())}")
        say(f"| {name} | {' | '.join(cells)} | {np.mean([case[name]['seconds'] for case in cases]):.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.starts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--toys", type=int, default=20)
    parser.add_argument("--styles", type=int, default=10)
    parser.add_argument("--steps", default="0,10,50", help="numbers of steps, with commas [default: 0,10,50]")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/training/starts.json"))
    parser.add_argument("--threads", type=int, help="number of CPU threads [default: all]")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    steps = [int(count) for count in options.steps.split(",")]
    model = BaseModel.load(None)
    engine = engine_of(model)
    measure = Measure(model)
    cases = {
        "object": [make_case(number, toy) for number, toy in enumerate(toys(options.toys))],
        "style": [style_case(number, style) for number, style in enumerate(styles(options.styles))],
    }
    seen: dict[str, list[Mapping[str, Any]]] = {}
    for kind, some in cases.items():
        seen[kind] = [losses_of(engine, measure, case, kind, steps) for case in some]
        options.output.write_text(json.dumps(seen, indent=1) + "\n", "utf-8")
        if some:
            say(f"\n{len(some)} withheld {kind}s")
            table(seen[kind], steps)


if __name__ == "__main__":
    main()
