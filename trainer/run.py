"""One job while it is trained: its vectors, its optimiser, and the rows of the step that it is in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from rpc.errors import FailedPrecondition
from trainer.draws import Draw, draw
from trainer.recipe import Recipe

_SMOOTHING = 0.9  # of the exponential mean of the loss
# Loss scale of half precision: where it begins, and after how many good steps it is doubled (as torch's GradScaler).
_FIRST_SCALE = 2.0**16
_GROWTH_STEPS = 2_000


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to learn. `pictures` are RGB, upright; `templates` hold `{}` in the word's place, one list a picture."""

    pictures: Sequence[Image.Image]
    templates: Sequence[Sequence[str]]
    start: str
    vectors: int
    seed: int
    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class Latents:
    """The pictures' latents, computed once: mean and deviation, scaled, [pictures (twice with mirrors), c, h, w]."""

    means: torch.Tensor
    deviations: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Root mean square of the vocabulary's values, and the mean norm of its rows."""

    rms: float
    norm: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimiser step that was made; `learning_rate` in units of the vocabulary's root mean square."""

    step: int
    loss: float
    smoothed_loss: float
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Learned:
    """`vectors` is fp32 [vectors, dims]; `losses` holds one loss a step."""

    vectors: np.ndarray
    losses: Sequence[float]
    stop_reason: str


class Run:
    """Owned by the engine's thread. Everything here is this job's own; the model is everybody's and never changes."""

    def __init__(self, task: Task, latents: Latents, start: torch.Tensor, unit: Unit, *, half: bool) -> None:
        """`start` is fp32 [vectors, dims]; `half`: the model's gradients are fp16, which a loss scale keeps from
        vanishing."""
        self.task = task
        self.latents = latents
        self._unit = unit
        self._start = start.detach().clone()
        # One leaf a vector. AdamW leaves those alone that have no gradient yet.
        self.leaves = [row[None].clone().requires_grad_(True) for row in self._start]
        self._optimiser = torch.optim.AdamW(
            self.leaves, lr=1.0, betas=(0.9, 0.999), weight_decay=task.recipe.weight_decay
        )
        self.losses: list[float] = []
        self._smoothed = 0.0
        self._half = half
        self.scale = _FIRST_SCALE if half else 1.0
        self._good_steps = 0
        self._row_losses: list[float] = []
        self._gradients: list[torch.Tensor] = []

    @property
    def step(self) -> int:
        """Optimiser steps made."""
        return len(self.losses)

    @property
    def done(self) -> bool:
        return self.step >= self.task.recipe.steps

    @property
    def rows_left(self) -> int:
        """Rows that the step it is in still lacks."""
        return self.task.recipe.rows - len(self._row_losses)

    def draws(self, count: int) -> list[Draw]:
        """The next `count` rows of the step; the same again until they are gathered."""
        first = len(self._row_losses)
        return [
            draw(
                self.task.recipe,
                seed=self.task.seed,
                step=self.step,
                row=first + index,
                latents=len(self.latents.means),
                templates=self.task.templates,
                shape=tuple(self.latents.means.shape[1:]),
            )
            for index in range(count)
        ]

    def gather(self, losses: Sequence[float], gradients: Sequence[torch.Tensor]) -> Step | None:
        """Takes rows in: their losses, and the gradients of their sum over the recipe's rows times `scale`, a leaf
        each. Gives the step that they complete, if they do and it is made. Raises FailedPrecondition (DIVERGED) when
        the loss or the vectors are no longer finite."""
        self._row_losses += losses
        if self._gradients:
            self._gradients = [before + more for before, more in zip(self._gradients, gradients, strict=True)]
        else:
            self._gradients = list(gradients)
        if self.rows_left > 0:
            return None
        loss = math.fsum(self._row_losses) / self.task.recipe.rows
        gathered, self._gradients, self._row_losses = self._gradients, [], []
        if self._half and math.isfinite(loss) and not _finite(gathered) and self.scale > 1:
            # The scale was too great, and the step is made again with the same draws.
            self.scale /= 2
            self._good_steps = 0
            return None
        return self._advance(loss, gathered)

    def learned(self) -> Learned:
        """The vectors as they are."""
        vectors = torch.cat([leaf.detach() for leaf in self.leaves])
        return Learned(vectors=vectors.cpu().numpy().copy(), losses=list(self.losses), stop_reason="steps")

    def _advance(self, loss: float, gradients: Sequence[torch.Tensor]) -> Step:
        recipe = self.task.recipe
        rate = rate_of(recipe, self.step)
        for leaf, start, gradient in zip(self.leaves, self._start, gradients, strict=True):
            leaf.grad = gradient / self.scale
            if recipe.start_weight:
                # Of start_weight times the squared distance.
                leaf.grad += 2 * recipe.start_weight * (leaf.detach() - start)
        if recipe.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.leaves, recipe.clip_norm)
        for group in self._optimiser.param_groups:
            group["lr"] = rate * self._unit.rms
        self._optimiser.step()
        with torch.no_grad():
            for leaf in self.leaves:
                if recipe.hold_norm:
                    leaf.mul_(self._unit.norm / leaf.norm())
                leaf.grad = None
        self.losses.append(loss)
        if not math.isfinite(loss) or not _finite(self.leaves):
            raise FailedPrecondition(
                f"training diverged at step {self.step}: try a lower learning rate than {recipe.learning_rate:g}",
                reason="DIVERGED",
                metadata={"step": str(self.step)},
            )
        self._grow()
        self._smoothed = _SMOOTHING * self._smoothed + (1 - _SMOOTHING) * loss
        mean = self._smoothed / (1 - _SMOOTHING**self.step)
        return Step(step=self.step, loss=loss, smoothed_loss=mean, learning_rate=rate)

    def _grow(self) -> None:
        self._good_steps += 1
        if self._half and self._good_steps % _GROWTH_STEPS == 0:
            self.scale *= 2


def rate_of(recipe: Recipe, step: int) -> float:
    """The learning rate of a step, counted from 0."""
    if not recipe.cosine or recipe.steps == 1:
        return recipe.learning_rate
    fall = (1 + math.cos(math.pi * step / (recipe.steps - 1))) / 2
    return recipe.learning_rate * (recipe.final_learning_rate + (1 - recipe.final_learning_rate) * fall)


def _finite(tensors: Sequence[torch.Tensor]) -> bool:
    return bool(torch.isfinite(torch.cat([tensor.detach() for tensor in tensors])).all())
