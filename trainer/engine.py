"""Textual inversion: vectors that make the frozen model predict the noise on a few pictures (arXiv 2208.01618, eq. 2).

Latents are computed once, frozen weights take no gradient, and row i of step s draws its picture, timestep, noise and
template from a counter-based generator keyed by (seed, s, i): equal tasks give equal vectors, whoever resumes them.
"""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDPMScheduler
from PIL import Image
from pseudoword.names import WordRef

from diffusion.checkpoint import BaseModel
from diffusion.encoder import PromptEncoder
from diffusion.pictures import square
from diffusion.prompt import Prompt, parse
from rpc.errors import FailedPrecondition, InvalidArgument
from trainer.recipe import Recipe

_WORD = WordRef(None, "w")  # how the templates name the word while it is learned
_SMOOTHING = 0.9  # of the exponential mean of the loss


class Stopped(Exception):
    """The task was told to stop before it had ended."""


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


class Engine:
    """Learns words on one frozen model, one after the other. Called by one thread."""

    def __init__(self, model: BaseModel) -> None:
        self._model = model
        self._encoder = PromptEncoder(model)
        self._noise = DDPMScheduler.from_config(model.scheduler_config)
        table = self._table()
        self.vocabulary_rms = table.square().mean().sqrt().item()
        self._vocabulary_norm = table.norm(dim=-1).mean().item()

    def start_ids(self, words: str) -> list[int]:
        """The vocabulary's entries of `words`, one for each. Raises InvalidArgument for a word that is not one."""
        ids = []
        for word in words.split():
            pieces = self._model.tokenizer(word, add_special_tokens=False).input_ids
            if len(pieces) != 1 or pieces[0] in self._model.tokenizer.all_special_ids:
                raise InvalidArgument(
                    f"the model's vocabulary has no single entry for {word[:64]!r}: start from a plainer word, or leave"
                    " the start out",
                    reason="START_UNKNOWN",
                    metadata={"word": word[:64], "entries": str(len(pieces))},
                )
            ids.append(pieces[0])
        return ids

    def start_for(self, candidates: Sequence[str]) -> str:
        """The first of `candidates` that the vocabulary has. Raises InvalidArgument when it has none."""
        for word in candidates[:-1]:
            try:
                self.start_ids(word)
            except InvalidArgument:
                continue
            return word
        self.start_ids(candidates[-1])
        return candidates[-1]

    def check_length(self, template: str, vectors: int) -> None:
        """Raises PromptTooLong when a sentence with a word of so many vectors does not fit the encoder."""
        self._encoder.tokenize(_sentence(template), {_WORD: vectors})

    def learn(self, task: Task, on_step: Callable[[Step], None], stop: threading.Event) -> Learned:
        """Learns one word. Raises Stopped when `stop` is set, at the latest one step later, and FailedPrecondition
        (DIVERGED) when the loss or the vectors are no longer finite."""
        recipe = task.recipe
        latents = self._latents(task)
        vectors = self._start(task)
        start = vectors.detach().clone()
        optimiser = torch.optim.AdamW([vectors], lr=1.0, betas=(0.9, 0.999), weight_decay=recipe.weight_decay)
        losses: list[float] = []
        smoothed = 0.0
        for step in range(recipe.steps):
            if stop.is_set():
                raise Stopped
            rate = _rate(recipe, step)
            for group in optimiser.param_groups:
                group["lr"] = rate * self.vocabulary_rms
            optimiser.zero_grad(set_to_none=True)
            loss = self._loss(task, latents, vectors, step)
            penalty = recipe.start_weight * (vectors - start).square().sum()
            (loss + penalty).backward()  # type: ignore[no-untyped-call]
            if recipe.clip_norm:
                torch.nn.utils.clip_grad_norm_([vectors], recipe.clip_norm)
            optimiser.step()
            if recipe.hold_norm:
                with torch.no_grad():
                    vectors.mul_(self._vocabulary_norm / vectors.norm(dim=-1, keepdim=True))
            losses.append(loss.item())
            if not math.isfinite(losses[-1]) or not bool(torch.isfinite(vectors).all()):
                raise FailedPrecondition(
                    f"training diverged at step {step + 1}: try a lower learning rate than {recipe.learning_rate:g}",
                    reason="DIVERGED",
                    metadata={"step": str(step + 1)},
                )
            smoothed = _SMOOTHING * smoothed + (1 - _SMOOTHING) * losses[-1]
            mean = smoothed / (1 - _SMOOTHING ** (step + 1))
            on_step(Step(step=step + 1, loss=losses[-1], smoothed_loss=mean, learning_rate=rate))
        return Learned(vectors=vectors.detach().cpu().numpy().copy(), losses=losses, stop_reason="steps")

    def _table(self) -> torch.Tensor:
        weight: torch.Tensor = self._encoder.vocabulary.detach().float()
        return weight

    def _start(self, task: Task) -> torch.Tensor:
        """The start's entries, one a vector; their mean for every vector where their numbers differ."""
        entries = self._table()[torch.tensor(self.start_ids(task.start), device=self._model.device)]
        if len(entries) != task.vectors:
            entries = entries.mean(dim=0, keepdim=True).expand(task.vectors, -1)
        return entries.clone().requires_grad_(True)

    @torch.no_grad()
    def _latents(self, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of the pictures' latents, scaled, [pictures (twice with mirrors), channels, h, w]."""
        model = self._model
        size = model.spec.sample_size_px
        arrays = [np.asarray(square(picture, size), dtype=np.float32) / 127.5 - 1 for picture in task.pictures]
        if task.recipe.flips:
            arrays += [array[:, ::-1] for array in arrays]
        means, deviations = [], []
        for array in arrays:
            pixels = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)[None]
            posterior = model.vae.encode(pixels.to(model.device, model.dtype)).latent_dist
            means.append(posterior.mean.float() * model.vae.config.scaling_factor)
            deviations.append(posterior.std.float() * model.vae.config.scaling_factor)
        return torch.cat(means), torch.cat(deviations)

    def _loss(
        self, task: Task, latents: tuple[torch.Tensor, torch.Tensor], vectors: torch.Tensor, step: int
    ) -> torch.Tensor:
        """Mean over the step's rows of the squared error of the prediction, weighted by min-SNR where asked."""
        model, recipe = self._model, task.recipe
        means, deviations = latents
        prompts: list[Prompt] = []
        chosen, times, shakes, noises = [], [], [], []
        for row in range(recipe.rows):
            draw = np.random.Generator(np.random.Philox(key=[task.seed, step << 32 | row]))
            picture = int(draw.integers(len(means)))
            templates = task.templates[picture % len(task.pictures)]
            prompts.append(_sentence(templates[int(draw.integers(len(templates)))]))
            chosen.append(picture)
            times.append(_timestep(recipe, row, float(draw.random())))
            shape = means.shape[1:]
            shakes.append(draw.standard_normal(shape, dtype=np.float32))
            noises.append(draw.standard_normal(shape, dtype=np.float32))
        device = model.device
        shake, noise = (torch.from_numpy(np.stack(drawn)).to(device) for drawn in (shakes, noises))
        timesteps = torch.tensor(times, device=device)
        clean = means[chosen] + deviations[chosen] * shake
        noisy = self._noise.add_noise(clean, noise, timesteps)
        hidden = self._encoder.encode(prompts, {_WORD: vectors})
        predicted = model.unet(noisy.to(model.dtype), timesteps, hidden.to(model.dtype)).sample.float()
        if model.spec.prediction_type == "v_prediction":
            wanted = self._noise.get_velocity(clean, noise, timesteps)
        else:
            wanted = noise
        by_row = (predicted - wanted).square().mean(dim=(1, 2, 3))
        if recipe.min_snr_gamma:
            by_row = by_row * self._min_snr(timesteps, recipe.min_snr_gamma)
        mean: torch.Tensor = by_row.mean()
        return mean

    def _min_snr(self, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
        """Weights of arXiv 2303.09556, eq. 7, for the model's kind of prediction."""
        signal = self._noise.alphas_cumprod.to(timesteps.device)[timesteps]
        snr = signal / (1 - signal)
        velocity = self._model.spec.prediction_type == "v_prediction"
        weights: torch.Tensor = snr.clamp(max=gamma) / (snr + 1 if velocity else snr)
        return weights


def _sentence(template: str) -> Prompt:
    before, after = template.split("{}")
    return Prompt((*parse(before).parts, _WORD, *parse(after).parts))


def _rate(recipe: Recipe, step: int) -> float:
    """The learning rate of a step, counted from 0."""
    if not recipe.cosine or recipe.steps == 1:
        return recipe.learning_rate
    fall = (1 + math.cos(math.pi * step / (recipe.steps - 1))) / 2
    return recipe.learning_rate * (recipe.final_learning_rate + (1 - recipe.final_learning_rate) * fall)


def _timestep(recipe: Recipe, row: int, draw: float) -> int:
    """A timestep from a uniform `draw` in [0, 1): of the row's own stratum, or of the whole range."""
    span = recipe.last_timestep - recipe.first_timestep + 1
    share = (row + draw) / recipe.rows if recipe.stratified else draw
    return recipe.first_timestep + min(span - 1, int(share * span))
