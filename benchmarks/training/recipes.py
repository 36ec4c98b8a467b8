"""Which recipe gives a word that draws its toy, most reliably, within about 20 s on two cores.

    python -m benchmarks.training.recipes [--toys N] [--seed N] [-o FOLDER]

For each of some toys no one has seen: four drawings to learn from, sixteen others to measure the loss on, and four
pictures drawn with the word, which the bundled classifier judges. Prints the table of docs/training.md; with -o also
writes a sheet of what was drawn, a row a toy, for each recipe.
"""

import argparse
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.training.measure import Measure, make_case, recognised, say
from diffusion.checkpoint import BaseModel
from miniature.judges.classifier import Classifier
from trainer.engine import Engine
from trainer.recipe import Recipe, recipes
from trainer.run import Task
from trainer.starts import Words
from trainer.templates import OBJECT

_USUAL = recipes("miniature")["object"]
RECIPES: dict[str, Recipe] = {
    "50 steps of 8 rows, rate 0.6": replace(_USUAL, steps=50, rows=8, learning_rate=0.6),
    "50 of 8, 0.4": replace(_USUAL, steps=50, rows=8, learning_rate=0.4),
    "50 of 8, 1.0": replace(_USUAL, steps=50, rows=8, learning_rate=1.0),
    "50 of 4, 0.6": replace(_USUAL, steps=50, rows=4, learning_rate=0.6),
    "100 of 4, 0.4": replace(_USUAL, steps=100, rows=4, learning_rate=0.4),
    "50 of 8, 0.6, timesteps from 300": replace(_USUAL, steps=50, rows=8, learning_rate=0.6, first_timestep=300),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.recipes", description=__doc__)
    parser.add_argument("--toys", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    judge = Classifier.load()
    model = BaseModel.load(None)
    engine, measure = Engine(model), Measure(model)
    cases = [make_case(arguments.seed + index) for index in range(arguments.toys)]
    toys = [case.toy for case in cases if case.toy is not None]
    say("| recipe | seconds | held-out loss | worst | kind / colour / pattern |\n|---|---|---|---|---|")

    def row(name: str, words: Sequence[torch.Tensor], seconds: str) -> None:
        losses = [measure.loss(case, vectors) for case, vectors in zip(cases, words, strict=True)]
        drawn = [measure.draw(vectors) for vectors in words]
        right = " / ".join(f"{share:.2f}" for share in recognised(judge, toys, drawn))
        say(f"| {name} | {seconds} | {np.mean(losses):.4f} | {max(losses):.4f} | {right} |")
        if arguments.out is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
            tiles = [[np.asarray(case.learn[0]), *pictures] for case, pictures in zip(cases, drawn, strict=True)]
            sheet = np.concatenate([np.concatenate(line, axis=1) for line in tiles])
            Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2)).save(arguments.out / f"{name}.png")

    table = model.embedding.weight.detach()
    row("the word `toy`", [table[engine.starts.ids("toy")]] * len(cases), "-")
    row("the kind's word", [table[engine.starts.ids(toy.kind)] for toy in toys], "-")
    for name, recipe in RECIPES.items():
        words, began = [], time.monotonic()
        for case in cases:
            task = Task(
                pictures=case.learn, templates=[OBJECT] * 4, start=Words(words="toy"), vectors=1, seed=0, recipe=recipe
            )
            words.append(torch.from_numpy(engine.learn(task, lambda made: None, threading.Event()).vectors))
        row(name, words, f"{(time.monotonic() - began) / len(cases):.1f}")


if __name__ == "__main__":
    main()
