"""Textual inversion: vectors that make the frozen model predict the noise on a few pictures (arXiv 2208.01618, eq. 2).

Many jobs share one model: a tick is one forward and one backward pass over rows of several jobs. The frozen weights
take no gradient, and every row's vectors are leaves of its own job. Each job's gradient is therefore that of its own
rows, independent of the other jobs in the batch.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pseudoword.names import WordRef

from diffusion.checkpoint import BaseModel
from diffusion.decode import decode
from diffusion.denoise import Denoising, step
from diffusion.encoder import PromptEncoder
from diffusion.prompt import Prompt
from trainer.evaluation.judges import JudgeLoader
from trainer.evaluation.measurement import Measurement, Subject
from trainer.training.initializer_search import Trial, best_word, better
from trainer.training.initializers import BestWord, FromWords, Initializers, LearnedStart
from trainer.training.latents import Latents, encode_pictures
from trainer.training.losses import Part, RowLosses
from trainer.training.run import Learned, Run, RunState, Step, Task, Unit
from trainer.training.start_network import StartNetwork
from trainer.training.template_fitter import sentence

_WORD = WordRef(None, "w")  # placeholder for the word in a preview
_PREVIEW_STEPS = 10
_PREVIEW_GUIDANCE = 4.0


class Stopped(Exception):
    """Training was stopped before its end."""


@dataclass(frozen=True, kw_only=True)
class TickResult:
    """A tick's result for one job: the step that it completed, if any, or the error that ends the job."""

    run: Run
    step: Step | None = None
    error: Exception | None = None


class Engine:
    """Learns and measures words on one frozen model. Called by one thread."""

    def __init__(
        self,
        model: BaseModel,
        *,
        max_rows: int = 64,
        checkpoint_activations: bool = False,
        learned_start: StartNetwork | None = None,
        judges: JudgeLoader | None = None,
    ) -> None:
        """A tick has at most `max_rows` rows; fewer after the device has run out of memory.
        `checkpoint_activations` recomputes the UNet's activations in the backward pass: less memory, more time."""
        self._model = model
        self._encoder = PromptEncoder(model)
        self._losses = RowLosses(model, self._encoder)
        self._judges = judges or JudgeLoader()
        self.max_rows = max_rows
        self.initializers = Initializers(model, self._encoder, learned_start)
        table = self.initializers.table
        self.unit = Unit(rms=self.initializers.unit.item(), norm=table.norm(dim=-1).mean().item())
        if checkpoint_activations:
            model.unet.enable_gradient_checkpointing()

    def prepare(self, task: Task, state: RunState | None = None) -> Run:
        """Computes everything that a job needs once, such as its latents. The run resumes from `state`, if given."""
        latents = encode_pictures(self._model, task.pictures, task.masks, flips=task.recipe.flips)
        half = self._model.dtype == torch.float16
        if state is None:
            start, chosen = self._initial_vectors(task, latents)
            return Run(task, latents, start, self.unit, half=half, chosen=chosen)
        start = torch.from_numpy(state.start).to(self._model.device)
        run = Run(task, latents, start, self.unit, half=half, chosen=state.chosen)
        run.restore(state)
        return run

    def _initial_vectors(self, task: Task, latents: Latents) -> tuple[torch.Tensor, str]:
        """fp32 [vectors, dims], and the start that was chosen, empty if there was no choice."""
        trial = Trial(
            latents=latents,
            templates=task.templates,
            recipe=task.recipe,
            seed=task.seed,
            losses=self._losses,
            max_rows=self.max_rows,
        )
        match task.start:
            case BestWord(usual=usual):
                word = best_word(trial, usual, self.initializers)
                return self.initializers.vectors(FromWords(words=word), task.vectors), word
            case LearnedStart(kind=kind, usual=usual):
                candidates = [
                    self.initializers.vectors(FromWords(words=usual), task.vectors),
                    self.initializers.learned(kind, latents.means, task.vectors),
                ]
                chosen = better(trial, candidates)
                return candidates[chosen], (usual, "learned")[chosen]
            case start:
                return self.initializers.vectors(start, task.vectors), ""

    def tick(self, grants: Sequence[tuple[Run, int]]) -> list[TickResult]:
        """Trains the next rows of several jobs in one pass; `grants` has the number of rows of each.

        If a job cannot be computed, its own TickResult has the error and the other jobs continue. If the device runs
        out of memory, `max_rows` is lowered, nothing else changes, and the result is empty.
        """
        try:
            return self._tick_batch(grants)
        except torch.OutOfMemoryError as error:
            rows = sum(count for _, count in grants)
            if rows > 1:
                self.max_rows = rows // 2
                return []
            return [TickResult(run=grants[0][0], error=error)]
        except Exception as error:
            if len(grants) == 1:
                return [TickResult(run=grants[0][0], error=error)]
            # Each job alone, to find the one whose rows failed.
            return [result for grant in grants for result in self.tick([grant])]

    @torch.no_grad()
    def preview(self, run: Run, template: str) -> np.ndarray:
        """A picture of the word's current vectors, uint8 [height, width, 3]: a few steps of DDIM from the same noise
        each time."""
        size = self._model.spec.sample_size_px
        vectors = torch.cat([leaf.detach() for leaf in run.active])
        picture = Denoising(
            self._model,
            embeds=self._encoder.encode([sentence(template, _WORD)], {_WORD: vectors}),
            negative=self._encoder.encode([Prompt(())], {}),
            scheduler="ddim",
            steps=_PREVIEW_STEPS,
            guidance=_PREVIEW_GUIDANCE,
            seed=0,
            width=size,
            height=size,
        )
        while not picture.done:
            step(self._model, [picture])
        return decode(self._model, picture.latents)[0]

    def measure(self, subject: Subject) -> Measurement:
        """Prepares the measurement of a version. Without judges it measures the loss only."""
        judges = self._judges.load(self._model.device)
        return Measurement(self._model, self._encoder, self._losses, subject, judges)

    def learn(self, task: Task, on_step: Callable[[Step], None], stop: threading.Event) -> Learned:
        """Learns one word, alone. Raises Stopped at most one step after `stop` was set, and Diverged when the loss or
        the vectors are no longer finite."""
        run = self.prepare(task)
        while not run.done:
            if stop.is_set():
                raise Stopped
            for result in self.tick([(run, min(run.rows_left, self.max_rows))]):
                if result.error is not None:
                    raise result.error
                if result.step is not None:
                    on_step(result.step)
        return run.learned()

    def _tick_batch(self, grants: Sequence[tuple[Run, int]]) -> list[TickResult]:
        by_row = self._losses.of(
            [
                Part(
                    vectors=torch.cat(list(run.active)),
                    latents=run.latents,
                    draws=run.draws(count),
                    min_snr_gamma=run.task.recipe.min_snr_gamma,
                )
                for run, count in grants
            ]
        )
        parts = torch.split(by_row, [count for _, count in grants])
        leaves = [leaf for run, _ in grants for leaf in run.active]
        # The sum over jobs of the mean over each job's rows: a job's gradient does not depend on the number of jobs.
        shares = [part.sum() * (run.scale / run.task.recipe.rows) for (run, _), part in zip(grants, parts, strict=True)]
        gradients = iter(torch.autograd.grad(torch.stack(shares).sum(), leaves))
        losses = iter(by_row.tolist())
        results = []
        for run, count in grants:
            own_losses = [next(losses) for _ in range(count)]
            own_gradients = [next(gradients) for _ in run.active]
            try:
                results.append(TickResult(run=run, step=run.gather(own_losses, own_gradients)))
            except Exception as error:
                results.append(TickResult(run=run, error=error))
        return results
