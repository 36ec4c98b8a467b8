"""Which recipe gives a word that draws its toy, most reliably, within about 20 s on two cores.

    python -m benchmarks.recipe [--toys N] [--seed N] [--judge-drawings N] [-o FOLDER]

For each of some toys no one has seen: four drawings to learn from, sixteen others to measure the loss on, and four
pictures drawn with the word, which a small classifier judges that was taught on drawings alone. Prints the table of
docs/training.md; with -o also writes a sheet of what was drawn, a row a toy, for each recipe.
"""

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from PIL import Image
from pseudoword.names import WordRef
from torch import nn

from diffusion.checkpoint import BaseModel
from diffusion.decode import decode
from diffusion.denoise import Denoising, step
from diffusion.encoder import PromptEncoder
from diffusion.prompt import parse
from miniature.chance import choose
from miniature.paint import paint
from miniature.world import COLOURS, KINDS, PATTERNS, SCENES, Drawing, Toy, random_colour, random_toy
from trainer.engine import Engine
from trainer.recipe import Recipe, recipes
from trainer.run import Task
from trainer.starts import Words
from trainer.templates import OBJECT

WORD = WordRef(None, "toy")
SENTENCES = (
    "a photo of a <toy>",
    "a photo of a <toy> on the beach",
    "a photo of a <toy> in the snow",
    "a photo of a <toy>",
)
_USUAL = recipes("miniature")["object"]
RECIPES: dict[str, Recipe] = {
    "50 steps of 8 rows, rate 0.6": replace(_USUAL, steps=50, rows=8, learning_rate=0.6),
    "50 of 8, 0.4": replace(_USUAL, steps=50, rows=8, learning_rate=0.4),
    "50 of 8, 1.0": replace(_USUAL, steps=50, rows=8, learning_rate=1.0),
    "50 of 4, 0.6": replace(_USUAL, steps=50, rows=4, learning_rate=0.6),
    "100 of 4, 0.4": replace(_USUAL, steps=100, rows=4, learning_rate=0.4),
    "50 of 8, 0.6, timesteps from 300": replace(_USUAL, steps=50, rows=8, learning_rate=0.6, first_timestep=300),
}
HEADS = {"kind": KINDS, "colour": COLOURS, "pattern": PATTERNS}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One toy."""

    toy: Toy
    learn: Sequence[Image.Image]
    held_out: Sequence[Image.Image]


def drawing_of(toy: Toy, rng: np.random.Generator) -> Image.Image:
    """The toy as a photo, somewhere."""
    others = [name for name in COLOURS if name != toy.colour.name]
    scene = choose(rng, SCENES) if rng.random() < 0.5 else None
    return paint(Drawing(toy=toy, background=random_colour(rng, choose(rng, others)), scene=scene), rng)


def make_case(seed: int) -> Case:
    rng = np.random.default_rng([seed, 77])
    toy = random_toy(rng)
    drawings = [drawing_of(toy, rng) for _ in range(20)]
    return Case(toy=toy, learn=drawings[:4], held_out=drawings[4:])


def examples(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawings as uint8 [count, 64, 64, 3], and the numbers of their kind, colour and pattern."""
    rng = np.random.default_rng([seed, 5])
    toys = [random_toy(rng) for _ in range(count)]
    pixels = np.stack([np.asarray(drawing_of(toy, rng)) for toy in toys])
    return pixels, np.array([answers(toy) for toy in toys])


def answers(toy: Toy) -> list[int]:
    return [KINDS.index(toy.kind), COLOURS.index(toy.colour.name), PATTERNS.index(toy.pattern)]


class Judge(nn.Module):
    """Kind, colour and pattern of a drawing, by a few convolutions."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 256), nn.ReLU(), nn.Dropout(0.2))
        self.heads = nn.ModuleList(nn.Linear(256, len(names)) for names in HEADS.values())

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        seen = self.body(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
        return [head(seen) for head in self.heads]

    @torch.no_grad()
    def right(self, pixels: torch.Tensor, wanted: torch.Tensor) -> list[float]:
        """Share of right answers, for each head."""
        self.eval()
        return [(head.argmax(1) == wanted[:, i]).float().mean().item() for i, head in enumerate(self(pixels))]


def teach(count: int) -> Judge:
    """A judge taught on `count` drawings; prints how well it does on others."""
    with ProcessPoolExecutor(2) as pool:
        made = list(pool.map(examples, range(8), [count // 8] * 8))
        check = tuple(torch.from_numpy(part) for part in pool.submit(examples, 99, 500).result())
    pixels, wanted = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*made, strict=True))
    torch.manual_seed(0)
    judge, epochs = Judge(), 10
    optimiser = torch.optim.AdamW(judge.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=epochs * (len(pixels) // 64))
    for _ in range(epochs):
        order = torch.randperm(len(pixels))
        for start in range(0, len(pixels) - 63, 64):
            chosen = order[start : start + 64]
            loss = sum(
                nn.functional.cross_entropy(head, wanted[chosen, i]) for i, head in enumerate(judge(pixels[chosen]))
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[union-attr]
            optimiser.step()
            schedule.step()
    say(f"judge on new drawings: {shares(judge.right(*check))}")
    return judge.eval()


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def shares(found: Sequence[float]) -> str:
    return " / ".join(f"{share:.2f}" for share in found)


class Measure:
    """What a word is worth."""

    def __init__(self, model: BaseModel) -> None:
        self._model = model
        self._encoder = PromptEncoder(model)
        self._noise = DDPMScheduler.from_config(model.scheduler_config)

    @torch.no_grad()
    def loss(self, case: Case, vectors: torch.Tensor) -> float:
        """Denoising loss on the drawings that were not learned from, timesteps evenly spread, equal noise for all."""
        model = self._model
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in case.held_out])).permute(0, 3, 1, 2)
        clean = model.vae.encode(pixels.float() / 127.5 - 1).latent_dist.mean * model.vae.config.scaling_factor
        clean = clean.repeat(6, 1, 1, 1)
        generator = torch.Generator().manual_seed(3)
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.arange(len(clean)) * 37 % 1000
        hidden = self._encoder.encode([parse("a photo of a <toy>")], {WORD: vectors})
        total = 0.0
        for start in range(0, len(clean), 48):
            part = slice(start, start + 48)
            noisy = self._noise.add_noise(clean[part], noise[part], times[part])
            predicted = model.unet(noisy, times[part], hidden.expand(len(noisy), -1, -1)).sample
            total += (predicted - noise[part]).square().mean((1, 2, 3)).sum().item()
        return total / len(clean)

    @torch.no_grad()
    def draw(self, vectors: torch.Tensor) -> list[np.ndarray]:
        """The SENTENCES with the word, 20 steps of DDIM, guidance 4."""
        negative = self._encoder.encode([parse("")], {})
        size = self._model.spec.sample_size_px
        pictures = [
            Denoising(
                self._model,
                embeds=self._encoder.encode([parse(sentence)], {WORD: vectors}),
                negative=negative,
                scheduler="ddim",
                steps=20,
                guidance=4.0,
                seed=seed,
                width=size,
                height=size,
            )
            for seed, sentence in enumerate(SENTENCES)
        ]
        while not pictures[0].done:
            step(self._model, pictures)
        return list(decode(self._model, torch.cat([picture.latents for picture in pictures])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toys", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judge-drawings", type=int, default=3200)
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    judge = teach(arguments.judge_drawings)
    model = BaseModel.load(None)
    engine, measure = Engine(model), Measure(model)
    cases = [make_case(arguments.seed + index) for index in range(arguments.toys)]
    wanted = torch.tensor([answers(case.toy) for case in cases for _ in SENTENCES])
    say("| recipe | seconds | held-out loss | worst | kind / colour / pattern |\n|---|---|---|---|---|")

    def row(name: str, words: Sequence[torch.Tensor], seconds: str) -> None:
        losses = [measure.loss(case, vectors) for case, vectors in zip(cases, words, strict=True)]
        drawn = [picture for vectors in words for picture in measure.draw(vectors)]
        right = judge.right(torch.from_numpy(np.stack(drawn)), wanted)
        say(f"| {name} | {seconds} | {np.mean(losses):.4f} | {max(losses):.4f} | {shares(right)} |")
        if arguments.out is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
            tiles = [[np.asarray(case.learn[0]), *drawn[i * 4 : i * 4 + 4]] for i, case in enumerate(cases)]
            sheet = np.concatenate([np.concatenate(line, axis=1) for line in tiles])
            Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2)).save(arguments.out / f"{name}.png")

    table = model.embedding.weight.detach()
    row("the word `toy`", [table[engine.starts.ids("toy")]] * len(cases), "-")
    row("the kind's word", [table[engine.starts.ids(case.toy.kind)] for case in cases], "-")
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
