"""Textual inversion: vectors that make the frozen model predict the noise on a few pictures (arXiv 2208.01618, eq. 2).

Many jobs on one model: a tick is one forward and one backward pass over rows of several jobs. The frozen weights take
no gradient and every row's vectors are its own job's leaves, so each job's gradient is that of its own rows, whoever
else is in the batch.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDPMScheduler
from pseudoword.names import WordRef

from diffusion.checkpoint import BaseModel
from diffusion.encoder import PromptEncoder
from diffusion.pictures import square
from diffusion.prompt import Prompt, parse
from rpc.errors import InvalidArgument
from trainer.draws import Draw
from trainer.run import Latents, Learned, Run, Step, Task, Unit

_WORD = WordRef(None, "w")  # how a template's word is called while its length is checked


class Stopped(Exception):
    """The task was told to stop before it had ended."""


@dataclass(frozen=True, kw_only=True)
class Ticked:
    """What a tick came to for one job: the step that it completed, if any, or why it cannot go on."""

    run: Run
    step: Step | None = None
    error: Exception | None = None


class Engine:
    """Learns words on one frozen model. Called by one thread."""

    def __init__(self, model: BaseModel, *, max_rows: int = 64, checkpoint_activations: bool = False) -> None:
        """At most `max_rows` rows in a tick; fewer once the device's memory was too small for as many.
        `checkpoint_activations` computes the UNet's activations anew in the backward pass: less memory, more time."""
        self._model = model
        self._encoder = PromptEncoder(model)
        self._noise = DDPMScheduler.from_config(model.scheduler_config)
        self.max_rows = max_rows
        table = self._table()
        self.unit = Unit(rms=table.square().mean().sqrt().item(), norm=table.norm(dim=-1).mean().item())
        if checkpoint_activations:
            model.unet.enable_gradient_checkpointing()

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
        self._encoder.tokenize(_sentence(template, _WORD), {_WORD: vectors})

    def prepare(self, task: Task) -> Run:
        """Everything of a job that is computed once."""
        half = self._model.dtype == torch.float16
        return Run(task, self._latents(task), self._start(task), self.unit, half=half)

    def tick(self, grants: Sequence[tuple[Run, int]]) -> list[Ticked]:
        """Trains the next rows of some jobs, so many of each, in one pass.

        A job that cannot be computed is told by its own Ticked and disturbs no other. When the device's memory does not
        suffice nothing has happened, `max_rows` is lower from then on, and the answer is empty.
        """
        try:
            return self._together(grants)
        except torch.OutOfMemoryError as error:
            rows = sum(count for _, count in grants)
            if rows > 1:
                self.max_rows = rows // 2
                return []
            return [Ticked(run=grants[0][0], error=error)]
        except Exception as error:
            if len(grants) == 1:
                return [Ticked(run=grants[0][0], error=error)]
            # Whose rows it was is found by each alone.
            return [ticked for grant in grants for ticked in self.tick([grant])]

    def learn(self, task: Task, on_step: Callable[[Step], None], stop: threading.Event) -> Learned:
        """Learns one word, alone. Raises Stopped when `stop` is set, at the latest one step later, and
        FailedPrecondition (DIVERGED) when the loss or the vectors are no longer finite."""
        run = self.prepare(task)
        while not run.done:
            if stop.is_set():
                raise Stopped
            for ticked in self.tick([(run, min(run.rows_left, self.max_rows))]):
                if ticked.error is not None:
                    raise ticked.error
                if ticked.step is not None:
                    on_step(ticked.step)
        return run.learned()

    def _table(self) -> torch.Tensor:
        weight: torch.Tensor = self._encoder.vocabulary.detach().float()
        return weight

    def _start(self, task: Task) -> torch.Tensor:
        """The start's entries, one a vector; their mean for every vector where their numbers differ."""
        entries = self._table()[torch.tensor(self.start_ids(task.start), device=self._model.device)]
        if len(entries) != task.vectors:
            entries = entries.mean(dim=0, keepdim=True).expand(task.vectors, -1)
        return entries

    @torch.no_grad()
    def _latents(self, task: Task) -> Latents:
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
        return Latents(means=torch.cat(means), deviations=torch.cat(deviations))

    def _together(self, grants: Sequence[tuple[Run, int]]) -> list[Ticked]:
        drawn = [run.draws(count) for run, count in grants]
        by_row = self._row_losses([run for run, _ in grants], drawn)
        parts = torch.split(by_row, [len(draws) for draws in drawn])
        leaves = [leaf for run, _ in grants for leaf in run.leaves]
        # The sum over jobs of the mean over own rows: no job's gradient knows how many others there are.
        shares = [part.sum() * (run.scale / run.task.recipe.rows) for (run, _), part in zip(grants, parts, strict=True)]
        gradients = iter(torch.autograd.grad(torch.stack(shares).sum(), leaves))
        losses = iter(by_row.tolist())
        ticked = []
        for run, count in grants:
            own_losses = [next(losses) for _ in range(count)]
            own_gradients = [next(gradients) for _ in run.leaves]
            try:
                ticked.append(Ticked(run=run, step=run.gather(own_losses, own_gradients)))
            except Exception as error:
                ticked.append(Ticked(run=run, error=error))
        return ticked

    def _row_losses(self, runs: Sequence[Run], drawn: Sequence[Sequence[Draw]]) -> torch.Tensor:
        """Loss of each row, fp32 [rows]: the squared error of the prediction, weighted by min-SNR where asked."""
        model = self._model
        words = [WordRef(None, f"w{index}") for index in range(len(runs))]
        device = model.device
        draws = [one for draws in drawn for one in draws]
        prompts = [_sentence(one.sentence, word) for word, draws in zip(words, drawn, strict=True) for one in draws]
        picked = [[one.picture for one in draws] for draws in drawn]
        means = torch.cat([run.latents.means[rows] for run, rows in zip(runs, picked, strict=True)])
        deviations = torch.cat([run.latents.deviations[rows] for run, rows in zip(runs, picked, strict=True)])
        shake = torch.from_numpy(np.stack([one.shake for one in draws])).to(device)
        noise = torch.from_numpy(np.stack([one.noise for one in draws])).to(device)
        timesteps = torch.tensor([one.timestep for one in draws], device=device)
        clean = means + deviations * shake
        noisy = self._noise.add_noise(clean, noise, timesteps)
        vectors = {word: torch.cat(run.leaves) for word, run in zip(words, runs, strict=True)}
        hidden = self._encoder.encode(prompts, vectors)
        predicted = model.unet(noisy.to(model.dtype), timesteps, hidden.to(model.dtype)).sample.float()
        if model.spec.prediction_type == "v_prediction":
            wanted = self._noise.get_velocity(clean, noise, timesteps)
        else:
            wanted = noise
        by_row: torch.Tensor = (predicted - wanted).square().mean(dim=(1, 2, 3))
        gammas = [run.task.recipe.min_snr_gamma for run, draws in zip(runs, drawn, strict=True) for _ in draws]
        if any(gammas):
            by_row = by_row * self._min_snr(timesteps, torch.tensor(gammas, device=device))
        return by_row

    def _min_snr(self, timesteps: torch.Tensor, gammas: torch.Tensor) -> torch.Tensor:
        """Weights of arXiv 2303.09556, eq. 7, for the model's kind of prediction; 1 where gamma is 0."""
        signal = self._noise.alphas_cumprod.to(timesteps.device)[timesteps]
        snr = signal / (1 - signal)
        velocity = self._model.spec.prediction_type == "v_prediction"
        weights = torch.minimum(snr, gammas) / (snr + 1 if velocity else snr)
        return torch.where(gammas > 0, weights, torch.ones_like(weights))


def _sentence(template: str, word: WordRef) -> Prompt:
    before, after = template.split("{}")
    return Prompt((*parse(before).parts, word, *parse(after).parts))
