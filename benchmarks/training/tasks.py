"""The paper's tasks on the miniature: reconstruction of a toy, style transfer and composition.

    python -m benchmarks.training.tasks [--toys N] [-o docs]

There are four pictures of each withheld toy, and three methods to draw it, as in section 5 of arXiv 2208.01618: a
learned word (the trainer's default recipe); the whole model, fine-tuned on the same pictures for as many steps; and
retrieval (of 2,000 drawings of other toys, those most similar to the pictures and the sentence). Fidelity is CLIP-I of
"a photo of" it with additional true drawings, and the share of pictures in which kind and colours are recognised.
Editability is CLIP-T, and the share in which an edit is recognised. Prints the table of docs/measurements/training.md
and writes the sheet training-tasks.png.
"""

import argparse
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pseudoword.sheet import Tile, contact_sheet

from benchmarks.miniature.words import alike, kept, toys
from benchmarks.training.measure import Case, Measure, engine_of, make_case, say, task_of
from diffusion.checkpoint import BaseModel
from diffusion.encoder import PromptEncoder
from miniature.judges.classifier import Classifier
from miniature.judges.clip import Judge
from miniature.paint import paint
from miniature.training.drawings import HELD_OUT, Drawings
from trainer.training.initializers import LearnedStart
from trainer.training.latents import encode_pictures
from trainer.training.losses import Part, RowLosses
from trainer.training.recipe import recipes
from trainer.training.samples import draw
from trainer.training.templates import OBJECT
from trainer.worker.engine import Engine

_RECIPE = recipes("miniature")["object"]
_FINE_TUNING_RATE = 1e-4  # AdamW's rate for all weights of text encoder and UNet
_BANK = 2000
_EACH = 2  # pictures of each sentence


@dataclass(frozen=True, kw_only=True)
class TaskPrompt:
    """A sentence with `{}` in the toy's place, the paper's task, and the attributes that its pictures should show."""

    task: str
    sentence: str
    wanted: Mapping[str, str]


PROMPTS = (
    TaskPrompt(task="reconstruction", sentence="a photo of a {}", wanted={}),
    TaskPrompt(task="style transfer", sentence="a sketch of a {}", wanted={"style": "sketch"}),
    TaskPrompt(task="style transfer", sentence="a {} in the style of van gogh", wanted={"style": "van gogh"}),
    TaskPrompt(task="style transfer", sentence="a watercolor painting of a {}", wanted={"style": "watercolor"}),
    TaskPrompt(task="composition", sentence="a photo of a {} on the beach", wanted={"scene": "beach"}),
    TaskPrompt(task="composition", sentence="a photo of a {} with sunglasses", wanted={"accessory": "sunglasses"}),
    TaskPrompt(task="composition", sentence="a photo of two {}", wanted={"count": "two"}),
)
_SENTENCES = tuple(prompt.sentence.format("<toy>") for prompt in PROMPTS for _ in range(_EACH))
Method = Callable[[Case], Sequence[Image.Image]]


def learned_word(model: BaseModel) -> Method:
    """Textual inversion by the trainer's own engine."""
    engine = engine_of(model)
    measure = Measure(model)
    start = LearnedStart(kind="object", usual="toy")

    def method(case: Case) -> Sequence[Image.Image]:
        vectors = engine.learn(task_of(case, start, _RECIPE), lambda step: None, threading.Event()).vectors
        return _images(measure.draw(torch.from_numpy(vectors), _SENTENCES))

    return method


def fine_tuned(steps: int) -> Method:
    """For each toy, all weights of text encoder and UNet, trained on its pictures with the word "toy"."""

    def method(case: Case) -> Sequence[Image.Image]:
        model = BaseModel.load(None)
        encoder = PromptEncoder(model)
        word = model.embedding.table.weight[Engine(model).initializers.words.ids("toy")].detach().clone()
        weights = [*model.unet.parameters(), *model.text_encoder.parameters()]
        for weight in weights:
            weight.requires_grad_(True)
        optimiser = torch.optim.AdamW(weights, lr=_FINE_TUNING_RATE, weight_decay=0.01)
        latents = encode_pictures(model, case.learn, [], flips=False)
        losses = RowLosses(model, encoder)
        for step in range(steps):
            draws = [
                draw(
                    _RECIPE,
                    seed=0,
                    step=step,
                    row=row,
                    latents=len(latents.means),
                    templates=[OBJECT],
                    shape=tuple(latents.means.shape[1:]),
                )
                for row in range(_RECIPE.rows)
            ]
            loss = losses.of([Part(vectors=word, latents=latents, draws=draws)]).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        for weight in weights:
            weight.requires_grad_(False)
        return _images(Measure(model).draw(word, _SENTENCES))

    return method


def retrieval(judge: Judge, bank: Sequence[Image.Image]) -> Method:
    """The drawings of the bank with the largest sum of the similarities to the pictures and to the sentence."""
    seen = torch.cat([judge.look(bank[start : start + 100]) for start in range(0, len(bank), 100)])
    read = judge.read([prompt.sentence.format("toy") for prompt in PROMPTS])

    def method(case: Case) -> Sequence[Image.Image]:
        like = seen @ judge.look(case.learn).mean(dim=0)
        best = [(like + seen @ sentence).topk(_EACH).indices.tolist() for sentence in read]
        return [bank[place] for places in best for place in places]

    return method


def _images(pixels: Sequence[np.ndarray]) -> list[Image.Image]:
    return [Image.fromarray(one) for one in pixels]


def scores(judge: Judge, classifier: Classifier, case: Case, drawn: Sequence[Image.Image]) -> Mapping[str, float]:
    """A toy's figures; `drawn` has _EACH pictures of each of PROMPTS."""
    if case.toy is None:
        raise ValueError("toys only")
    by_prompt = [list(drawn[place * _EACH : (place + 1) * _EACH]) for place in range(len(PROMPTS))]
    found: dict[str, list[float]] = {}
    for prompt, images in zip(PROMPTS, by_prompt, strict=True):
        seen, read = judge.look(images), judge.read([prompt.sentence.format("toy")])
        if not prompt.wanted:
            found["CLIP-I"] = [alike(seen, judge.look(case.held_out))]
            found["kind and colours kept"] = [kept(classifier, images, case.toy, {})]
            continue
        found.setdefault("CLIP-T of the edits", []).append(alike(seen, read))
        found.setdefault(f"{prompt.task}, all kept", []).append(kept(classifier, images, case.toy, prompt.wanted))
    return {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--toys", type=int, default=6)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs"))
    options = parser.parse_args()
    judge, classifier = Judge.load(), Classifier.load()
    others = Drawings(Path(), _BANK, HELD_OUT)
    bank = [paint(others.drawing(number), np.random.default_rng((HELD_OUT, number, 1))) for number in range(_BANK)]
    methods = {
        "a learned word": learned_word(BaseModel.load(None)),
        "the whole model fine-tuned": fine_tuned(_RECIPE.steps),
        "retrieval": retrieval(judge, bank),
    }
    cases = [make_case(number, toy) for number, toy in enumerate(toys(options.toys))]
    names: Sequence[str] = ()
    rows: list[list[Tile]] = []
    lines = []
    for method_name, method in methods.items():
        began = time.monotonic()
        drawn = [method(case) for case in cases]
        seconds = (time.monotonic() - began) / len(cases)
        each = [scores(judge, classifier, case, images) for case, images in zip(cases, drawn, strict=True)]
        names = list(each[0])
        means = [float(np.mean([one[name] for one in each])) for name in names]
        lines.append(f"| {method_name} | {' | '.join(f'{mean:.3f}' for mean in means)} | {seconds:.1f} |")
        for case, images in zip(cases[:3], drawn, strict=False):
            tiles = [Tile(image=images[place * _EACH], caption=prompt.sentence) for place, prompt in enumerate(PROMPTS)]
            rows.append([Tile(image=case.learn[0], caption=method_name), *tiles])
    say(f"| {len(cases)} withheld toys | {' | '.join(names)} | seconds a toy |")
    say("|---" * (len(names) + 2) + "|")
    for line in lines:
        say(line)
    sheet = contact_sheet(rows, tile_px=96, title="true, then drawn")
    sheet.save(options.output / "training-tasks.png", optimize=True)


if __name__ == "__main__":
    main()
