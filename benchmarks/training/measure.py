"""Measures a word: the held-out loss of its toy, and the attributes that are recognised in four pictures."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import DDPMScheduler
from PIL import Image
from pseudoword.names import WordRef
from scipy.stats import t as student

from diffusion.checkpoint import BaseModel
from diffusion.decode import decode
from diffusion.denoise import Denoising, step
from diffusion.encoder import PromptEncoder
from diffusion.prompt import parse
from miniature.chance import choose
from miniature.judges.attributes import ATTRIBUTES
from miniature.judges.classifier import Classifier
from miniature.paint import paint
from miniature.style import Style
from miniature.world import COLOURS, SCENES, Drawing, Toy, random_colour, random_drawing, random_toy
from trainer.training.initializers import Initializer
from trainer.training.recipe import Recipe
from trainer.training.run import Run, Task
from trainer.training.start_network import beside, load
from trainer.training.templates import TEMPLATES
from trainer.worker.engine import Engine

WORD = WordRef(None, "toy")
SENTENCES = (
    "a photo of a <toy>",
    "a photo of a <toy> on the beach",
    "a photo of a <toy> in the snow",
    "a photo of a <toy>",
)
SEEN = ("kind", "colour", "pattern")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A toy or a style: pictures to learn from, held-out pictures, and the sentence for the held-out loss."""

    toy: Toy | None = None
    learn: Sequence[Image.Image]
    held_out: Sequence[Image.Image]
    sentence: str = "a photo of a <toy>"


def drawing_of(toy: Toy, rng: np.random.Generator) -> Image.Image:
    """A photo of the toy in front of a random background."""
    others = [name for name in COLOURS if name != toy.colour.name]
    scene = choose(rng, SCENES) if rng.random() < 0.5 else None
    return paint(Drawing(toy=toy, background=random_colour(rng, choose(rng, others)), scene=scene), rng)


def make_case(seed: int, toy: Toy | None = None) -> Case:
    """The case of a toy; None: a random toy."""
    rng = np.random.default_rng([seed, 77])
    toy = toy or random_toy(rng)
    drawings = [drawing_of(toy, rng) for _ in range(20)]
    return Case(toy=toy, learn=drawings[:4], held_out=drawings[4:])


def style_case(seed: int, style: Style) -> Case:
    """The case of a style: drawings of different toys in it."""
    rng = np.random.default_rng([seed, 78])
    drawings = [paint(replace(random_drawing(rng), style=style), rng) for _ in range(20)]
    return Case(learn=drawings[:4], held_out=drawings[4:], sentence="a picture in the style of <toy>")


def recognised(classifier: Classifier, toys: Sequence[Toy], drawn: Sequence[Sequence[np.ndarray]]) -> list[float]:
    """For each attribute of SEEN, the share of the toys' drawn pictures in which the classifier recognises it."""
    images = [Image.fromarray(picture) for pictures in drawn for picture in pictures]
    found = classifier.judge(images)
    toy_of = [toy for toy, pictures in zip(toys, drawn, strict=True) for _ in pictures]
    true = {"kind": lambda toy: toy.kind, "colour": lambda toy: toy.colour.name, "pattern": lambda toy: toy.pattern}
    rights = []
    for name in SEEN:
        answers = [ATTRIBUTES[name].answers[int(answer)] for answer in found[name].argmax(dim=1)]
        rights.append(float(np.mean([answer == true[name](toy) for answer, toy in zip(answers, toy_of, strict=True)])))
    return rights


def engine_of(model: BaseModel) -> Engine:
    """The trainer's engine, with the learned start of the bundled model."""
    folder = beside(None)
    return Engine(model, learned_start=None if folder is None else load(folder, model.spec))


def task_of(case: Case, start: Initializer, recipe: Recipe) -> Task:
    """A task for one vector, with the default sentences of the recipe's kind."""
    templates = [TEMPLATES[recipe.name]] * len(case.learn)
    return Task(pictures=case.learn, templates=templates, start=start, vectors=1, seed=0, recipe=recipe)


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The mean, and the half width of its 95 % interval (Student's t)."""
    array = np.asarray(values)
    half = student.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return float(array.mean()), float(half)


def tick(engine: Engine, runs: Sequence[Run]) -> None:
    """One tick for the remaining rows of the runs' steps, in the order of the runs, up to the engine's maximum. Raises
    the error of a run."""
    room, grants = engine.max_rows, []
    for run in runs:
        if count := min(run.rows_left, room):
            grants.append((run, count))
            room -= count
    for ticked in engine.tick(grants):
        if ticked.error is not None:
            raise ticked.error


def train(engine: Engine, runs: Sequence[Run]) -> None:
    """Trains all runs together to their ends. Each result is equal to that of a run alone, except for the last bits."""
    while left := [run for run in runs if not run.done]:
        tick(engine, left)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Measure:
    """Measures words for one model."""

    def __init__(self, model: BaseModel) -> None:
        self._model = model
        self._encoder = PromptEncoder(model)
        self._noise = DDPMScheduler.from_config(model.scheduler_config)

    @torch.no_grad()
    def loss(self, case: Case, vectors: torch.Tensor) -> float:
        """The denoising loss on the held-out drawings, with evenly spread timesteps and the same noise for all
        words."""
        model = self._model
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in case.held_out])).permute(0, 3, 1, 2)
        clean = model.vae.encode(pixels.float() / 127.5 - 1).latent_dist.mean * model.vae.config.scaling_factor
        clean = clean.repeat(6, 1, 1, 1)
        generator = torch.Generator().manual_seed(3)
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.arange(len(clean)) * 37 % 1000
        hidden = self._encoder.encode([parse(case.sentence)], {WORD: vectors})
        total = 0.0
        for start in range(0, len(clean), 48):
            part = slice(start, start + 48)
            noisy = self._noise.add_noise(clean[part], noise[part], times[part])
            predicted = model.unet(noisy, times[part], hidden.expand(len(noisy), -1, -1)).sample
            total += (predicted - noise[part]).square().mean((1, 2, 3)).sum().item()
        return total / len(clean)

    @torch.no_grad()
    def draw(self, vectors: torch.Tensor, sentences: Sequence[str] = SENTENCES) -> list[np.ndarray]:
        """Pictures of the sentences with the word `<toy>`: 20 steps of DDIM, guidance 4, seeds 0, 1 and so on."""
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
            for seed, sentence in enumerate(sentences)
        ]
        while not pictures[0].done:
            step(self._model, pictures)
        return list(decode(self._model, torch.cat([picture.latents for picture in pictures])))
