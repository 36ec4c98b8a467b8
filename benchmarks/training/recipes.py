"""Compares the default recipe with recipes that differ from it in one setting.

    python -m benchmarks.training.recipes [--toys N] [--recipe NAME ...] [-o FOLDER]

For each withheld toy there are four drawings to learn from, sixteen others to measure the loss on, and four pictures
drawn with the word, which the bundled classifier judges. All recipes use the learned start unless the table names
another. Prints the table of docs/measurements/training.md. Its column "worse" is the mean of the paired differences of
the loss with its 95 % interval, in percent of the default's gain over the word. With -o also writes a sheet of the
pictures for each recipe, with a row for each toy.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.miniature.words import toys
from benchmarks.training.measure import Measure, engine_of, interval, make_case, recognised, say, task_of, train
from diffusion.checkpoint import BaseModel
from miniature.judges.classifier import Classifier
from trainer.training.initializers import FromWords, Initializer, LearnedStart
from trainer.training.recipe import Recipe, Schedule, recipes
from trainer.training.run import Run
from trainer.training.samples import TrainingSample

_USUAL = recipes("miniature")["object"]
_WORD = FromWords(words="toy")
_LEARNED = LearnedStart(kind="object", usual="toy")
_UNIFORM = replace(_USUAL, stratified=False)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A recipe: the default, except for the given fields."""

    recipe: Recipe = _USUAL
    start: Initializer = _LEARNED
    change: Callable[[Run], None] = lambda run: None
    """Changes a prepared run, for variants that no setting of the recipe covers."""


def _means_only(run: Run) -> None:
    """Uses the means of the latents, without sampling from their posterior."""
    _redraw(run, lambda draws: [replace(one, posterior_noise=np.zeros_like(one.posterior_noise)) for one in draws])


def _pool(steps: int) -> Callable[[Run], None]:
    """Repeats the samples of the first `steps` steps."""

    def change(run: Run) -> None:
        kept: dict[tuple[int, int], TrainingSample] = {}

        def again(draws: Sequence[TrainingSample]) -> list[TrainingSample]:
            return [kept.setdefault((run.step % steps, row), one) for row, one in enumerate(draws)]

        _redraw(run, again)

    return change


def _mirrored_timesteps(run: Run) -> None:
    """Gives every second row the mirrored timestep of the row before it."""
    _redraw(
        run,
        lambda draws: _pairs(draws, lambda one, other: replace(other, timestep=_USUAL.last_timestep - one.timestep)),
    )


def _mirrored_noise(run: Run) -> None:
    """Makes every second row a copy of the row before it, with the opposite noise."""
    _redraw(run, lambda draws: _pairs(draws, lambda one, other: replace(one, noise=-one.noise)))


def _pairs(
    draws: Sequence[TrainingSample], second: Callable[[TrainingSample, TrainingSample], TrainingSample]
) -> list[TrainingSample]:
    return [draws[row] if row % 2 == 0 else second(draws[row - 1], draws[row]) for row in range(len(draws))]


def _redraw(run: Run, change: Callable[[Sequence[TrainingSample]], list[TrainingSample]]) -> None:
    """Applies `change` to the samples of a step. Here a tick has all rows of a step, so `change` gets them together."""
    drawn = run.draws
    run.draws = lambda count: change(drawn(count))  # type: ignore[method-assign]


def _optimiser(make: Callable[[Sequence[torch.Tensor]], torch.optim.Optimizer]) -> Callable[[Run], None]:
    def change(run: Run) -> None:
        run._optimiser = make(run.leaves)

    return change


RECIPES: Mapping[str, Arm] = {
    "the default: 50 steps of 4 rows, rate 0.6": Arm(),
    "from the word *toy*": Arm(start=_WORD),
    "rate 0.3": Arm(recipe=replace(_USUAL, learning_rate=0.3)),
    "rate 1.0": Arm(recipe=replace(_USUAL, learning_rate=1.0)),
    "2 rows": Arm(recipe=replace(_USUAL, rows=2)),
    "8 rows": Arm(recipe=replace(_USUAL, rows=8)),
    "25 steps of 16 rows": Arm(recipe=replace(_USUAL, steps=25, rows=16)),
    "a constant rate of 0.1": Arm(recipe=replace(_USUAL, learning_rate=0.1, schedule=Schedule.CONSTANT)),
    "timesteps drawn uniformly": Arm(recipe=_UNIFORM),
    "timesteps in mirrored pairs": Arm(recipe=_UNIFORM, change=_mirrored_timesteps),
    "noise in mirrored pairs": Arm(change=_mirrored_noise),
    "a pool of the draws of 5 steps": Arm(change=_pool(5)),
    "latents' means, not drawn anew": Arm(change=_means_only),
    "timesteps from 300 up": Arm(recipe=replace(_USUAL, first_timestep=300)),
    "min-SNR 5": Arm(recipe=replace(_USUAL, min_snr_gamma=5.0)),
    "Adam with betas 0.9, 0.99": Arm(change=_optimiser(lambda leaves: torch.optim.Adam(leaves, betas=(0.9, 0.99)))),
    "Adam with betas 0.8, 0.999": Arm(change=_optimiser(lambda leaves: torch.optim.Adam(leaves, betas=(0.8, 0.999)))),
    "NAdam": Arm(change=_optimiser(torch.optim.NAdam)),
    "RMSprop, 0.9": Arm(change=_optimiser(lambda leaves: torch.optim.RMSprop(leaves, alpha=0.9))),
    "Adagrad": Arm(change=_optimiser(torch.optim.Adagrad)),
    "norm held at the vocabulary's": Arm(recipe=replace(_USUAL, hold_norm=True)),
    "weight decay 0.01": Arm(recipe=replace(_USUAL, weight_decay=0.01)),
    "squared distance to the start, 0.001": Arm(recipe=replace(_USUAL, start_weight=0.001)),
    "mirrored pictures too": Arm(recipe=replace(_USUAL, flips=True)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.recipes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--toys", type=int, default=10)
    parser.add_argument(
        "--recipe", action="append", choices=list(RECIPES), help="only the default and this recipe; can be repeated"
    )
    parser.add_argument("--threads", type=int, help="number of CPU threads [default: all]")
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    judge = Classifier.load()
    model = BaseModel.load(None)
    engine = engine_of(model)
    measure = Measure(model)
    subjects = toys(options.toys)
    cases = [make_case(number, toy) for number, toy in enumerate(subjects)]
    say("| recipe | rows in all | held-out loss | worse, % | kind / colour / pattern |\n|---|---|---|---|---|")

    def learned(arm: Arm) -> list[torch.Tensor]:
        runs = [engine.prepare(task_of(case, arm.start, arm.recipe)) for case in cases]
        for run in runs:
            arm.change(run)
        train(engine, runs)
        return [torch.from_numpy(run.learned().vectors) for run in runs]

    def losses_of(words: Sequence[torch.Tensor]) -> np.ndarray:
        return np.array([measure.loss(case, vectors) for case, vectors in zip(cases, words, strict=True)])

    start = losses_of([model.embedding.table.weight.detach()[engine.initializers.words.ids("toy")]] * len(cases))
    say(f"| the word *toy*, no step | 0 | {start.mean():.6f} | | |")
    best: np.ndarray | None = None
    for name, arm in RECIPES.items():
        if best is not None and options.recipe and name not in options.recipe:
            continue
        words = learned(arm)
        losses = losses_of(words)
        best = losses if best is None else best
        mean, half = interval(100 * (losses - best) / (start - best).mean())
        drawn = [measure.draw(vectors) for vectors in words]
        right = " / ".join(f"{share:.2f}" for share in recognised(judge, subjects, drawn))
        rows = arm.recipe.steps * arm.recipe.rows
        say(f"| {name} | {rows} | {losses.mean():.6f} | {mean:+.1f} ± {half:.1f} | {right} |")
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            tiles = [[np.asarray(case.learn[0]), *pictures] for case, pictures in zip(cases, drawn, strict=True)]
            sheet = np.concatenate([np.concatenate(line, axis=1) for line in tiles])
            Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2)).save(options.out / f"{name}.png")


if __name__ == "__main__":
    main()
