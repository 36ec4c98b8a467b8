"""The figures of one version, computed in slices that are short enough for somebody else to go between."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from pseudoword.names import WordRef

from diffusion.checkpoint import BaseModel
from diffusion.decode import decode
from diffusion.denoise import Denoising, step
from diffusion.encoder import PromptEncoder
from diffusion.pictures import square
from diffusion.prompt import Prompt
from trainer.evaluation.judges import Judges
from trainer.evaluation.plan import GUIDANCE, LOSS_ROWS, PICTURES, STEPS
from trainer.training.latents import encode_pictures
from trainer.training.losses import Part, RowLosses
from trainer.training.recipe import Recipe
from trainer.training.samples import EVALUATION_STEP, samples_of_all_timesteps
from trainer.training.template_fitter import sentence

_WORD = WordRef(None, "w")
_ROWS = 16  # of a slice: a fraction of a second on two cores of a CPU, and half of what pays there


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What to evaluate. `vectors` is fp32 [vectors, dims]; `pictures` are RGB, upright, with `masks` and `templates` as
    a training task has them. `plain` is drawn PICTURES times, each of `edits` once; `usual` stands for the word where
    CLIP reads them. `recipe` says which timesteps the loss is taken over."""

    vectors: np.ndarray
    pictures: Sequence[Image.Image]
    masks: Sequence[Image.Image | None]
    templates: Sequence[Sequence[str]]
    plain: str
    edits: Sequence[str]
    usual: str
    recipe: Recipe
    seed: int


class Measurement:
    """One version while it is measured. Owned by the engine's thread.

    Every draw is from a seed of its own, so equal subjects have equal figures on one machine. `made` slices are done of
    `slices`; nothing of it lasts but `figures`, and one that is broken off begins anew.
    """

    def __init__(
        self, model: BaseModel, encoder: PromptEncoder, losses: RowLosses, subject: Subject, judges: Judges
    ) -> None:
        """Encodes the pictures. Raises MaskEmpty."""
        self._model = model
        self._encoder = encoder
        self._losses = losses
        given = [square(picture, model.spec.sample_size_px) for picture in subject.pictures]
        self._subject = replace(subject, pictures=given, masks=())  # as uploaded they may take much memory
        self._judges = judges
        self._vectors = torch.from_numpy(subject.vectors).to(model.device)
        self._latents = encode_pictures(model, subject.pictures, subject.masks, flips=False)
        self.figures: dict[str, float] = {}
        # Pictures that the figures rest on: those that were given, and those that were drawn.
        self.samples = len(subject.pictures)
        self._work = self._all()
        self.made = 0
        self.slices = -(-LOSS_ROWS // _ROWS)
        if judges.clip is not None or judges.dino is not None:
            self.slices += 1 + STEPS  # plain pictures, and what is said of them
        if judges.clip is not None and subject.edits:
            self.slices += 1 + STEPS

    @property
    def done(self) -> bool:
        return self.made == self.slices

    @property
    def judges(self) -> Sequence[str]:
        """Who judges, as Judges.names."""
        return self._judges.names

    @torch.no_grad()
    def advance(self) -> None:
        """Computes the next slice. Raises PromptTooLong for a word that no sentence has room for."""
        next(self._work)
        self.made += 1

    def _all(self) -> Iterator[None]:
        """A slice between any two yields, and one after the last."""
        yield from self._loss()
        subject, clip, dino = self._subject, self._judges.clip, self._judges.dino
        if clip is not None or dino is not None:
            drawn = yield from self._drawn([subject.plain] * PICTURES)
            if clip is not None:
                self.figures["clip_i"] = _mean_product(clip.look(subject.pictures), clip.look(drawn))
            if dino is not None:
                self.figures["dino"] = _mean_product(dino.look(subject.pictures), dino.look(drawn))
            yield
        if clip is not None and subject.edits:
            drawn = yield from self._drawn(subject.edits)
            wanted = clip.read([edit.replace("{}", subject.usual) for edit in subject.edits])
            self.figures["clip_t"] = float((clip.look(drawn) * wanted).sum(dim=-1).mean())
            yield

    def _loss(self) -> Iterator[None]:
        """The mean denoising loss over rows that no training has seen."""
        means = self._latents.means
        draws = samples_of_all_timesteps(
            self._subject.recipe,
            seed=self._subject.seed,
            step=EVALUATION_STEP,
            count=LOSS_ROWS,
            latents=len(means),
            templates=self._subject.templates,
            shape=tuple(means.shape[1:]),
        )
        found: list[float] = []
        for first in range(0, LOSS_ROWS, _ROWS):
            part = Part(vectors=self._vectors, latents=self._latents, draws=draws[first : first + _ROWS])
            found += self._losses.of([part]).tolist()
            if len(found) == LOSS_ROWS:
                self.figures["held_out_loss"] = float(np.mean(found))
            yield

    def _drawn(self, templates: Sequence[str]) -> Generator[None, None, list[Image.Image]]:
        """A picture of each, from seeds that follow each other; a slice is a step of all."""
        size = self._model.spec.sample_size_px
        prompts = [sentence(template, _WORD) for template in templates]
        embeds = self._encoder.encode(prompts, {_WORD: self._vectors})
        negative = self._encoder.encode([Prompt(())], {})
        pictures = [
            Denoising(
                self._model,
                embeds=embeds[at : at + 1],
                negative=negative,
                scheduler="ddim",
                steps=STEPS,
                guidance=GUIDANCE,
                seed=self._subject.seed + at,
                width=size,
                height=size,
            )
            for at in range(len(templates))
        ]
        while not pictures[0].done:
            step(self._model, pictures)
            yield
        self.samples += len(pictures)
        pixels = decode(self._model, torch.cat([picture.latents for picture in pictures]))
        return [Image.fromarray(one) for one in pixels]


def _mean_product(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean cosine of every picture of one set with every one of another, as unit vectors (arXiv 2208.01618, section
    5)."""
    return float((one @ other.T).mean())
