"""One job while it is trained: its vectors, its optimiser, and the rows of the step that it is in."""

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

_SMOOTHING = 0.9  # of the exponential mean of the loss
# Loss scale of half precision: where it begins, and after how many good steps it is doubled (as torch's GradScaler).
_FIRST_SCALE = 2.0**16
_GROWTH_STEPS = 2_000


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to learn. `pictures` are RGB, upright; `templates` hold `{}` in the word's place, one list a picture;
    `masks` are pictures of the same shapes, white where the thing is, None where nobody said, or empty."""

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
    """One optimiser step that was made, of `steps` planned; `learning_rate` in units of the vocabulary's root mean
    square."""

    step: int
    steps: int
    loss: float
    smoothed_loss: float
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Learned:
    """`vectors` is fp32 [vectors, dims]; `losses` holds one loss a step; `chosen` is the start that was chosen, where
    there was a choice: a word, or "learned"."""

    vectors: np.ndarray
    losses: Sequence[float]
    stop_reason: str
    chosen: str = ""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """All that a run needs to go on as if it had never been broken off, at the end of a step.

    Arrays are fp32 [vectors, dims], `losses` float64 [steps]. `adam_steps` counts the optimiser's steps of each vector.
    `gradient` (the last one), `recent` and `converged` are the stopping rule's.
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
    """Owned by the engine's thread. Everything here is this job's own; the model is everybody's and never changes."""

    def __init__(
        self, task: Task, latents: Latents, start: torch.Tensor, unit: Unit, *, half: bool, chosen: str = ""
    ) -> None:
        """`start` is fp32 [vectors, dims]; `half`: the model's gradients are fp16, which a loss scale keeps from
        vanishing; `chosen` is which start it is, where there was a choice."""
        self.task = task
        self.latents = latents
        self._unit = unit
        self._chosen = chosen
        self._start = start.detach().clone()
        # One leaf a vector. AdamW leaves those alone that have no gradient yet.
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
        # Steps after which the rule fired.
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
        """The leaves that are in this step's sentences."""
        return self.leaves[: vectors_at(self.task.recipe, self.step, len(self.leaves))]

    @property
    def rows_left(self) -> int:
        """Rows that the step it is in still lacks."""
        return self.task.recipe.rows - len(self._row_losses)

    def draws(self, count: int) -> list[TrainingSample]:
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
        """Takes rows in: their losses, and the gradients of their sum over the recipe's rows times `scale`, an active
        leaf each. Gives the step that they complete, if they do and it is made. Raises Diverged
        when the loss or the vectors are no longer finite."""
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

    def state(self, trained_s: float) -> RunState:
        """Where it is after its last step; `trained_s` is what it has taken so far. Rows gathered since are left out:
        they are drawn again."""
        nothing = torch.zeros_like(self.leaves[0])
        moments = [self._optimiser.state.get(leaf, {}) for leaf in self.leaves]

        def rows(tensors: Sequence[torch.Tensor]) -> np.ndarray:
            found: np.ndarray = torch.cat([tensor.detach() for tensor in tensors]).cpu().numpy().copy()
            return found

        return RunState(
            vectors=rows(self.leaves),
            start=rows([self._start]),
            first_moments=rows([one.get("exp_avg", nothing) for one in moments]),
            second_moments=rows([one.get("exp_avg_sq", nothing) for one in moments]),
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
        """Goes on from `state`, made of a run of the same task."""
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
        """The vectors as they are."""
        vectors = torch.cat([leaf.detach() for leaf in self.leaves])
        reason = StopReason.STEPS if self._converged is None else StopReason.CONVERGED
        return Learned(
            vectors=vectors.cpu().numpy().copy(),
            losses=list(self.losses),
            stop_reason=reason.value,
            chosen=self._chosen,
        )

    def initial(self) -> Learned:
        """The vectors before the first step."""
        vectors = self._start.cpu().numpy().copy()
        return Learned(vectors=vectors, losses=[], stop_reason=StopReason.AT_ONCE.value, chosen=self._chosen)

    def _advance(self, loss: float, gradients: Sequence[torch.Tensor]) -> Step:
        recipe, active = self.task.recipe, self.active
        rate = rate_of(recipe, self.step, self._converged)
        for leaf, start, gradient in zip(active, self._start[: len(active)], gradients, strict=True):
            leaf.grad = gradient / self.scale
            if recipe.start_weight:
                # Of start_weight times the squared distance.
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
        self._grow()
        self._smoothed = _SMOOTHING * self._smoothed + (1 - _SMOOTHING) * loss
        mean = self._smoothed / (1 - _SMOOTHING**self.step)
        return Step(step=self.step, steps=self.end, loss=loss, smoothed_loss=mean, learning_rate=rate)

    def _observe_gradient(self, gradient: torch.Tensor) -> None:
        """Shows the stopping rule the newest gradient, at the end of a step that is not counted yet."""
        norms = gradient.norm() * self._gradient.norm()
        if self._converged is None and norms > 0:
            cosine = ((gradient * self._gradient).sum() / norms).item()
            if self.rule.fires(cosine, self.step + 1):
                self._converged = self.step + 1
        self._gradient = gradient.detach().clone()

    def _grow(self) -> None:
        self._good_steps += 1
        if self._half and self._good_steps % _GROWTH_STEPS == 0:
            self.scale *= 2


def _finite(tensors: Sequence[torch.Tensor]) -> bool:
    return bool(torch.isfinite(torch.cat([tensor.detach() for tensor in tensors])).all())
