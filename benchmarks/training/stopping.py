"""Fits the stopping rule on some toys and evaluates it on others.

    python -m benchmarks.training.stopping FILE.json --toys N    trains until FILE has N toys
    python -m benchmarks.training.stopping FILE.json             prints the tables of the toys in FILE

Each toy is trained at the recipe's rate, without a fall. At some steps a copy of the run cools down as in the trainer,
and its held-out loss is measured. Every rule can thus be evaluated on the same run. The rule's window and threshold are
chosen on the first half of the toys and reported on the second.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.training.measure import Case, Measure, make_case, say, task_of, tick, train
from diffusion.checkpoint import BaseModel
from trainer.training.initializers import FromWords
from trainer.training.recipe import Schedule, recipes
from trainer.training.run import Run
from trainer.training.schedule import cooling_steps
from trainer.training.stopping import LEAST_STEPS, StopRule
from trainer.worker.engine import Engine

HELD = replace(recipes("miniature")["object"], steps=100, schedule=Schedule.HOLD_THEN_COOL, early_stopping=True)
STEPS = HELD.steps - cooling_steps(HELD)  # before the cool-down, if no rule fires
SNAPSHOTS = (20, 35, 50, 65, STEPS)
AT_ONCE = 8  # number of toys that are trained together
WINDOWS = (5, 10, 15)
THRESHOLDS = (-0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
ALLOWED = 0.02  # maximum loss of a rule compared with no early stopping, as a fraction of the training's gain
Seen = Mapping[str, Any]


class Recorder(StopRule):
    """Records the cosines, and never fires."""

    def __init__(self) -> None:
        super().__init__()
        self.cosines: list[float] = []

    def fires(self, cosine: float, steps: int) -> bool:
        self.cosines.append(cosine)
        return False


def watch(engine: Engine, measure: Measure, cases: Sequence[Case]) -> list[Seen]:
    """For each toy the cosines of its gradients, and the held-out loss after a cool-down from each step of
    SNAPSHOTS."""
    tasks = [task_of(case, FromWords(words="toy"), HELD) for case in cases]
    runs = [engine.prepare(task) for task in tasks]
    recorders = [Recorder() for _ in runs]
    for run, recorder in zip(runs, recorders, strict=True):
        run.rule = recorder
    losses = [{0: _loss(measure, case, run)} for case, run in zip(cases, runs, strict=True)]
    for step in range(1, STEPS + 1):
        while behind := [run for run in runs if run.step < step]:
            tick(engine, behind)
        if step in SNAPSHOTS:
            states = [replace(run.state(0.0), converged=step) for run in runs]
            cooled = [engine.prepare(task, state) for task, state in zip(tasks, states, strict=True)]
            train(engine, cooled)
            for case, run, found in zip(cases, cooled, losses, strict=True):
                found[step] = _loss(measure, case, run)
    seen = [{"cosines": recorder.cosines, "losses": found} for recorder, found in zip(recorders, losses, strict=True)]
    as_kept: list[Seen] = json.loads(json.dumps(seen))
    return as_kept


def _loss(measure: Measure, case: Case, run: Run) -> float:
    return measure.loss(case, torch.from_numpy(run.learned().vectors))


def fired(cosines: Sequence[float], window: int, threshold: float) -> int:
    """The step after which a rule fires; STEPS if it does not."""
    for step in range(LEAST_STEPS, STEPS):
        # The first cosine belongs to the second step.
        recent = cosines[max(0, step - 1 - window) : step - 1]
        if len(recent) == window and np.mean(recent) < threshold:
            return step
    return STEPS


def loss_at(seen: Seen, step: int) -> float:
    """The held-out loss after a cool-down from `step`, interpolated linearly between snapshots."""
    known = sorted((int(at), loss) for at, loss in seen["losses"].items() if int(at))
    return float(np.interp(step, [at for at, _ in known], [loss for _, loss in known]))


def judged(toys: Sequence[Seen], steps: Sequence[int]) -> tuple[float, float]:
    """The mean number of steps with their cool-down, and the fraction of the whole run's gain that stopping loses."""
    gains = [float(seen["losses"]["0"]) - loss_at(seen, STEPS) for seen in toys]
    lost = [loss_at(seen, step) - loss_at(seen, STEPS) for seen, step in zip(toys, steps, strict=True)]
    return float(np.mean(steps)) + cooling_steps(HELD), float(np.sum(lost) / np.sum(gains))


def report(toys: Sequence[Seen]) -> None:
    fit, other = toys[: len(toys) // 2], toys[len(toys) // 2 :]
    tried = []
    for window, threshold in product(WINDOWS, THRESHOLDS):
        steps = [fired(seen["cosines"], window, threshold) for seen in fit]
        tried.append((*judged(fit, steps), window, threshold))
    good = [one for one in tried if one[1] <= ALLOWED] or [min(tried, key=lambda one: one[1])]
    _, _, window, threshold = min(good)
    say(f"chosen on {len(fit)} toys: window {window}, threshold {threshold}")
    say("| what | steps, mean | gain lost, fit | steps, mean | gain lost, others |\n|---|---|---|---|---|")
    rows = {
        f"rule, window {window}, threshold {threshold}": [fired(seen["cosines"], window, threshold) for seen in toys]
    }
    rows |= {f"always {step} and the cool-down": [step] * len(toys) for step in SNAPSHOTS}
    for name, stops in rows.items():
        cells = []
        for group, ends in ((fit, stops[: len(fit)]), (other, stops[len(fit) :])):
            mean, lost = judged(group, ends)
            cells.append(f"{mean:.0f} | {100 * lost:+.1f} %")
        say(f"| {name} | {' | '.join(cells)} |")
    spread = sorted(fired(seen["cosines"], window, threshold) for seen in other)
    say(f"fires on the others after {spread} steps; DVAR's rule (N = 310) not before 310")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--toys", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    toys: list[Seen] = json.loads(arguments.file.read_text()) if arguments.file.exists() else []
    if len(toys) < arguments.toys:
        torch.set_num_threads(arguments.threads)
        model = BaseModel.load(None)
        engine, measure = Engine(model), Measure(model)
        while len(toys) < arguments.toys:
            numbers = range(len(toys), min(len(toys) + AT_ONCE, arguments.toys))
            toys += watch(engine, measure, [make_case(1_000 + number) for number in numbers])
            arguments.file.write_text(json.dumps(toys))
    report(toys)


if __name__ == "__main__":
    main()
