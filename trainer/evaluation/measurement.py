"""Computes the figures of one version in slices, short enough that training ticks can run between them."""

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
_ROWS = 16  # rows of a slice: a fraction of a second on two CPU cores, and half of the most efficient number there


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The input of an evaluation. `vectors` is fp32 [vectors, dims]; `pictures` are RGB, upright; `masks` and
    `templates` are as in a training task. `plain` is drawn PICTURES times, each of `edits` once; for CLIP, the word
    `usual` replaces the learned word in them. `recipe` has the range of timesteps of the loss."""

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
    """The measurement of one version. Owned by the engine's thread.

    Every sample and picture has its own seed, so equal subjects have equal figures on one machine. `slices_done` of
    `slices` slices are done. There is no checkpoint: an interrupted measurement starts again from the first slice.
    """

    def __init__(
        self, model: BaseModel, encoder: PromptEncoder, losses: RowLosses, subject: Subject, judges: Judges
    ) -> None:
        """Encodes the pictures. Raises MaskEmpty."""
        self._model = model
        self._encoder = encoder
        self._losses = losses
        squares = [square(picture, model.spec.sample_size_px) for picture in subject.pictures]
        self._subject = replace(subject, pictures=squares, masks=())  # drops the uploads, which may be large
        self._judges = judges
        self._vectors = torch.from_numpy(subject.vectors).to(model.device)
        self._latents = encode_pictures(model, subject.pictures, subject.masks, flips=False)
        self.figures: dict[str, float] = {}
        # Number of pictures that the figures are based on: uploaded and drawn ones.
        self.samples = len(subject.pictures)
        self._slices = self._compute_slices()
        self.slices_done = 0
        self.slices = -(-LOSS_ROWS // _ROWS)
        if judges.clip is not None or judges.dino is not None:
            self.slices += 1 + STEPS  # the plain pictures, and their scores
        if judges.clip is not None and subject.edits:
            self.slices += 1 + STEPS

    @property
    def done(self) -> bool:
        return self.slices_done == self.slices

    @property
    def judges(self) -> Sequence[str]:
        """Names of the judges, as in Judges.names."""
        return self._judges.names

    @torch.no_grad()
    def advance(self) -> None:
        """Computes the next slice. Raises PromptTooLong for a word that does not fit into any sentence."""
        next(self._slices)
        self.slices_done += 1

    def _compute_slices(self) -> Iterator[None]:
        """Computes all figures; each yield ends a slice."""
        yield from self._held_out_loss()
        subject, clip, dino = self._subject, self._judges.clip, self._judges.dino
        if clip is not None or dino is not None:
            drawn = yield from self._draw_pictures([subject.plain] * PICTURES)
            if clip is not None:
                self.figures["clip_i"] = _mean_product(clip.look(subject.pictures), clip.look(drawn))
            if dino is not None:
                self.figures["dino"] = _mean_product(dino.look(subject.pictures), dino.look(drawn))
            yield
        if clip is not None and subject.edits:
            drawn = yield from self._draw_pictures(subject.edits)
            targets = clip.read([edit.replace("{}", subject.usual) for edit in subject.edits])
            self.figures["clip_t"] = float((clip.look(drawn) * targets).sum(dim=-1).mean())
            yield

    def _held_out_loss(self) -> Iterator[None]:
        """Computes the mean denoising loss over samples that training never draws."""
        means = self._latents.means
        samples = samples_of_all_timesteps(
            self._subject.recipe,
            seed=self._subject.seed,
            step=EVALUATION_STEP,
            count=LOSS_ROWS,
            latents=len(means),
            templates=self._subject.templates,
            shape=tuple(means.shape[1:]),
        )
        losses: list[float] = []
        for first in range(0, LOSS_ROWS, _ROWS):
            part = Part(vectors=self._vectors, latents=self._latents, draws=samples[first : first + _ROWS])
            losses += self._losses.of([part]).tolist()
            if len(losses) == LOSS_ROWS:
                self.figures["held_out_loss"] = float(np.mean(losses))
            yield

    def _draw_pictures(self, templates: Sequence[str]) -> Generator[None, None, list[Image.Image]]:
        """Draws one picture of each template, with consecutive seeds; a slice is one step of all pictures."""
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
    """Mean cosine between every picture of one set and every picture of another, given as unit vectors (arXiv
    2208.01618, section 5)."""
    return float((one @ other.T).mean())
