"""One job in training: its vectors, its optimiser, and the rows of its current step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from trainer.errors import Diverged
from trainer.training.initializers import Initializer
from trainer.training.latents import Latents
from trainer.training.recipe import Recipe
from trainer.training.samples import TrainingSample, draw
from trainer.training.schedule import StopReason, end_of, rate_of, vectors_at
from trainer.training.stopping import StopRule

_SMOOTHING = 0.9  # decay of the exponential mean of the loss
# Loss scale of half precision: its initial value, and the good steps after which it is doubled (as in torch's
# GradScaler).
_FIRST_SCALE = 2.0**16
_GROWTH_STEPS = 2_000


@dataclass(frozen=True, kw_only=True)
class Task:
    """The input of a training job. `pictures` are RGB, upright; `templates` has one list for each picture, with `{}` in
    the word's place. `masks` have the pictures' shapes and are white where the thing is; None for a picture without a
    mask; the sequence may be empty."""

    pictures: Sequence[Image.Image]
    templates: Sequence[Sequence[str]]
    start: Initializer
    vectors: int
    seed: int
    recipe: Recipe
    masks: Sequence[Image.Image | None] = ()


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Root mean square of the vocabulary's values, and the mean norm of its rows."""

    rms: float
    norm: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """A completed optimiser step of `steps` planned; `learning_rate` is in units of the vocabulary's root mean
    square."""

    step: int
    steps: int
    loss: float
    smoothed_loss: float
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Learned:
    """The result of training. `vectors` is fp32 [vectors, dims]; `losses` has one loss for each step; `chosen` is the
    start that was chosen (a word, or "learned"), empty if there was no choice."""

    vectors: np.ndarray
    losses: Sequence[float]
    stop_reason: str
    chosen: str = ""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of a run at the end of a step, from which it resumes exactly.

    Arrays are fp32 [vectors, dims], `losses` float64 [steps]. `adam_steps` counts the optimiser's steps of each vector.
    `gradient` (of the last step), `recent` and `converged` belong to the stopping rule.
    """

    vectors: np.ndarray
    start: np.ndarray
    first_moments: np.ndarray
    second_moments: np.ndarray
    gradient: np.ndarray
    losses: np.ndarray
    adam_steps: Sequence[int]
    smoothed: float
    scale: float
    good_steps: int
    recent: Sequence[float]
    converged: int | None
    trained_s: float
    chosen: str


class Run:
    """A job's training state. Owned by the engine's thread. Nothing in it is shared with other jobs; the shared model
    never changes."""

    def __init__(
        self, task: Task, latents: Latents, start: torch.Tensor, unit: Unit, *, half: bool, chosen: str = ""
    ) -> None:
        """`start` is fp32 [vectors, dims]; `half`: the model's gradients are fp16, which a loss scale keeps from
        underflowing; `chosen` is the start that was chosen, empty if there was no choice."""
        self.task = task
        self.latents = latents
        self._unit = unit
        self._chosen = chosen
        self._start = start.detach().clone()
        # One leaf for each vector: AdamW skips leaves without a gradient.
        self.leaves = [row[None].clone().requires_grad_(True) for row in self._start]
        self._optimiser: torch.optim.Optimizer = torch.optim.AdamW(
            self.leaves, lr=1.0, betas=(0.9, 0.999), weight_decay=task.recipe.weight_decay
        )
        self.losses: list[float] = []
        self._smoothed = 0.0
        self._half = half
        self.scale = _FIRST_SCALE if half else 1.0
        self._good_steps = 0
        self._row_losses: list[float] = []
        self._gradients: list[torch.Tensor] = []
        self.rule = StopRule()
        self._gradient = torch.zeros_like(self._start)
        # Number of steps after which the rule fired.
        self._converged: int | None = None

    @property
    def step(self) -> int:
        """Optimiser steps made."""
        return len(self.losses)

    @property
    def end(self) -> int:
        """Optimiser steps planned."""
        return end_of(self.task.recipe, self._converged)

    @property
    def done(self) -> bool:
        return self.step >= self.end

    @property
    def active(self) -> Sequence[torch.Tensor]:
        """The leaves whose vectors are in this step's sentences."""
        return self.leaves[: vectors_at(self.task.recipe, self.step, len(self.leaves))]

    @property
    def rows_left(self) -> int:
        """Rows that the current step still lacks."""
        return self.task.recipe.rows - len(self._row_losses)

    def draws(self, count: int) -> list[TrainingSample]:
        """The next `count` samples of the step; repeated calls return the same samples until gather() takes their
        rows."""
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
        """Adds rows to the step: their losses, and for each active leaf the gradient of the losses' sum times `scale`
        divided by the recipe's rows. Returns the step if these rows complete it and it was not discarded for a gradient
        overflow. Raises Diverged when the loss or the vectors are no longer finite."""
        self._row_losses += losses
        if self._gradients:
            self._gradients = [total + more for total, more in zip(self._gradients, gradients, strict=True)]
        else:
            self._gradients = list(gradients)
        if self.rows_left > 0:
            return None
        loss = math.fsum(self._row_losses) / self.task.recipe.rows
        gathered, self._gradients, self._row_losses = self._gradients, [], []
        if self._half and math.isfinite(loss) and not _finite(gathered) and self.scale > 1:
            # The scale was too large: the step is repeated with the same samples.
            self.scale /= 2
            self._good_steps = 0
            return None
        return self._advance(loss, gathered)

    def state(self, trained_s: float) -> RunState:
        """The state after the last step; `trained_s` is the training time so far in seconds. Rows gathered since are
        left out: they are computed again."""
        zeros = torch.zeros_like(self.leaves[0])
        moments = [self._optimiser.state.get(leaf, {}) for leaf in self.leaves]

        def rows(tensors: Sequence[torch.Tensor]) -> np.ndarray:
            array: np.ndarray = torch.cat([tensor.detach() for tensor in tensors]).cpu().numpy().copy()
            return array

        return RunState(
            vectors=rows(self.leaves),
            start=rows([self._start]),
            first_moments=rows([one.get("exp_avg", zeros) for one in moments]),
            second_moments=rows([one.get("exp_avg_sq", zeros) for one in moments]),
            gradient=rows([self._gradient]),
            losses=np.array(self.losses, dtype=np.float64),
            adam_steps=[int(one["step"]) if one else 0 for one in moments],
            smoothed=self._smoothed,
            scale=self.scale,
            good_steps=self._good_steps,
            recent=list(self.rule.recent),
            converged=self._converged,
            trained_s=trained_s,
            chosen=self._chosen,
        )

    def restore(self, state: RunState) -> None:
        """Resumes from `state`, which must be of a run of the same task."""
        device = self._start.device
        moments = zip(state.adam_steps, state.first_moments, state.second_moments, strict=True)
        for leaf, vector, (steps, first, second) in zip(self.leaves, state.vectors, moments, strict=True):
            with torch.no_grad():
                leaf.copy_(torch.from_numpy(vector))
            if steps:
                self._optimiser.state[leaf] = {
                    "step": torch.tensor(float(steps)),
                    "exp_avg": torch.from_numpy(first)[None].to(device),
                    "exp_avg_sq": torch.from_numpy(second)[None].to(device),
                }
        self.losses = state.losses.tolist()
        self._smoothed = state.smoothed
        self.scale = state.scale
        self._good_steps = state.good_steps
        self.rule = StopRule(state.recent)
        self._gradient = torch.from_numpy(state.gradient).to(device)
        self._converged = state.converged

    def learned(self) -> Learned:
        """The current vectors, as the result."""
        vectors = torch.cat([leaf.detach() for leaf in self.leaves])
        reason = StopReason.STEPS if self._converged is None else StopReason.CONVERGED
        return Learned(
            vectors=vectors.cpu().numpy().copy(),
            losses=list(self.losses),
            stop_reason=reason.value,
            chosen=self._chosen,
        )

    def initial(self) -> Learned:
        """The vectors before the first step, as the result of an initial version."""
        vectors = self._start.cpu().numpy().copy()
        return Learned(vectors=vectors, losses=[], stop_reason=StopReason.AT_ONCE.value, chosen=self._chosen)

    def _advance(self, loss: float, gradients: Sequence[torch.Tensor]) -> Step:
        recipe, active = self.task.recipe, self.active
        rate = rate_of(recipe, self.step, self._converged)
        for leaf, start, gradient in zip(active, self._start[: len(active)], gradients, strict=True):
            leaf.grad = gradient / self.scale
            if recipe.start_weight:
                # The gradient of start_weight times the squared distance from the start.
                leaf.grad += 2 * recipe.start_weight * (leaf.detach() - start)
        if recipe.clip_norm:
            torch.nn.utils.clip_grad_norm_(active, recipe.clip_norm)
        for group in self._optimiser.param_groups:
            group["lr"] = rate * self._unit.rms
        self._optimiser.step()
        with torch.no_grad():
            for leaf in active:
                if recipe.hold_norm:
                    leaf.mul_(self._unit.norm / leaf.norm())
        if recipe.early_stopping and len(active) == len(self.leaves):
            self._observe_gradient(torch.cat([leaf.grad for leaf in active if leaf.grad is not None]))
        for leaf in active:
            leaf.grad = None
        self.losses.append(loss)
        if not math.isfinite(loss) or not _finite(self.leaves):
            raise Diverged(
                f"training diverged at step {self.step}: try a lower learning rate than {recipe.learning_rate:g}",
                step=str(self.step),
            )
        self._grow_scale()
        self._smoothed = _SMOOTHING * self._smoothed + (1 - _SMOOTHING) * loss
        mean = self._smoothed / (1 - _SMOOTHING**self.step)
        return Step(step=self.step, steps=self.end, loss=loss, smoothed_loss=mean, learning_rate=rate)

    def _observe_gradient(self, gradient: torch.Tensor) -> None:
        """Passes the newest gradient to the stopping rule, at the end of a step that `step` does not count yet."""
        norms = gradient.norm() * self._gradient.norm()
        if self._converged is None and norms > 0:
            cosine = ((gradient * self._gradient).sum() / norms).item()
            if self.rule.fires(cosine, self.step + 1):
                self._converged = self.step + 1
        self._gradient = gradient.detach().clone()

    def _grow_scale(self) -> None:
        self._good_steps += 1
        if self._half and self._good_steps % _GROWTH_STEPS == 0:
            self.scale *= 2


def _finite(tensors: Sequence[torch.Tensor]) -> bool:
    return bool(torch.isfinite(torch.cat([tensor.detach() for tensor in tensors])).all())
