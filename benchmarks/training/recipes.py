"""Which knobs of the recipe are worth turning: the default recipe, and others that differ from it in one thing.

    python -m benchmarks.training.recipes [--toys N] [--recipe NAME ...] [-o FOLDER]

For each of some toys that no training ever showed: four drawings to learn from, sixteen others to measure the loss on,
and four pictures drawn with the word, which the bundled classifier judges. All start from the learned start but where
the table says so. Prints the table of docs/training.md; worse is by how much of what the default gains over the word,
as the mean of the paired differences with its 95 % interval. With -o also writes a sheet of what was drawn, a row a
toy, for each recipe.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.miniature.words import toys
from benchmarks.training.measure import Measure, engine_of, interval, make_case, recognised, say, task_of, train
from diffusion.checkpoint import BaseModel
from miniature.judges.classifier import Classifier
from trainer.recipe import Recipe, Schedule, recipes
from trainer.starts import LearnedStart, Start, Words

_USUAL = recipes("miniature")["object"]
_WORD = Words(words="toy")
_LEARNED = LearnedStart(kind="object", usual="toy")
RECIPES: Mapping[str, tuple[Recipe, Start]] = {
    "the default: 50 steps of 4 rows, rate 0.6": (_USUAL, _LEARNED),
    "from the word *toy*": (_USUAL, _WORD),
    "rate 0.3": (replace(_USUAL, learning_rate=0.3), _LEARNED),
    "rate 1.0": (replace(_USUAL, learning_rate=1.0), _LEARNED),
    "2 rows": (replace(_USUAL, rows=2), _LEARNED),
    "8 rows": (replace(_USUAL, rows=8), _LEARNED),
    "25 steps of 16 rows": (replace(_USUAL, steps=25, rows=16), _LEARNED),
    "a constant rate of 0.1": (replace(_USUAL, learning_rate=0.1, schedule=Schedule.CONSTANT), _LEARNED),
    "timesteps drawn uniformly": (replace(_USUAL, stratified=False), _LEARNED),
    "timesteps from 300 up": (replace(_USUAL, first_timestep=300), _LEARNED),
    "min-SNR 5": (replace(_USUAL, min_snr_gamma=5.0), _LEARNED),
    "norm held at the vocabulary's": (replace(_USUAL, hold_norm=True), _LEARNED),
    "weight decay 0.01": (replace(_USUAL, weight_decay=0.01), _LEARNED),
    "squared distance to the start, 0.001": (replace(_USUAL, start_weight=0.001), _LEARNED),
    "mirrored pictures too": (replace(_USUAL, flips=True), _LEARNED),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.recipes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--toys", type=int, default=10)
    parser.add_argument(
        "--recipe", action="append", choices=list(RECIPES), help="only the default and this one; may be said again"
    )
    parser.add_argument("--threads", type=int, help="of the processor [default: all]")
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    judge = Classifier.load()
    model = BaseModel.load(None)
    engine = engine_of(model)
    measure = Measure(model)
    asked = toys(options.toys)
    cases = [make_case(number, toy) for number, toy in enumerate(asked)]
    say("| recipe | rows in all | held-out loss | worse, % | kind / colour / pattern |\n|---|---|---|---|---|")

    def learned(recipe: Recipe, start: Start) -> list[torch.Tensor]:
        runs = [engine.prepare(task_of(case, start, recipe)) for case in cases]
        train(engine, runs)
        return [torch.from_numpy(run.learned().vectors) for run in runs]

    def losses_of(words: Sequence[torch.Tensor]) -> np.ndarray:
        return np.array([measure.loss(case, vectors) for case, vectors in zip(cases, words, strict=True)])

    start = losses_of([model.embedding.table.weight.detach()[engine.starts.ids("toy")]] * len(cases))
    say(f"| the word *toy*, no step | 0 | {start.mean():.6f} | | |")
    best: np.ndarray | None = None
    for name, (recipe, begin) in RECIPES.items():
        if best is not None and options.recipe and name not in options.recipe:
            continue
        words = learned(recipe, begin)
        losses = losses_of(words)
        best = losses if best is None else best
        mean, half = interval(100 * (losses - best) / (start - best).mean())
        drawn = [measure.draw(vectors) for vectors in words]
        right = " / ".join(f"{share:.2f}" for share in recognised(judge, asked, drawn))
        rows = recipe.steps * recipe.rows
        say(f"| {name} | {rows} | {losses.mean():.6f} | {mean:+.1f} ± {half:.1f} | {right} |")
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            tiles = [[np.asarray(case.learn[0]), *pictures] for case, pictures in zip(cases, drawn, strict=True)]
            sheet = np.concatenate([np.concatenate(line, axis=1) for line in tiles])
            Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2)).save(options.out / f"{name}.png")


if __name__ == "__main__":
    main()
