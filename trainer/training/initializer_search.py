"""Searches the start with the lowest loss on a job's pictures, among the vocabulary's words or given vectors."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from typing import TypeVar

import numpy as np
import torch

from trainer.training.initializers import FromWords, Initializers
from trainer.training.latents import Latents
from trainer.training.losses import Part, RowLosses
from trainer.training.recipe import Recipe
from trainer.training.samples import TRIAL_STEP, TrainingSample, samples_of_all_timesteps

_Row = TypeVar("_Row")
_Key = TypeVar("_Key", bound=Hashable)
# Number of samples that a word was tried on after each round.
_ROUNDS = (4, 16, 32)
_SCALE = 2.0**10  # keeps an fp16 gradient from underflowing; it does not change the ranking


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The data that starts are compared on: a job's pictures, in batches of at most `max_rows` rows."""

    latents: Latents
    templates: Sequence[Sequence[str]]
    recipe: Recipe
    seed: int
    losses: RowLosses
    max_rows: int


def best_word(trial: Trial, usual: str, starts: Initializers) -> str:
    """The word with the lowest loss on the pictures; `usual` if none beats it.

    One backward pass at the usual start selects promising words. Each round tries the remaining words on more samples,
    the same for all words, and keeps the best quarter.
    """
    samples = _trial_samples(trial)
    vectors = _row(starts, usual).requires_grad_(True)
    gradient = torch.zeros_like(vectors)
    for batch in _batches(samples, trial.max_rows):
        loss = trial.losses.of([Part(vectors=vectors, latents=trial.latents, draws=batch)]).sum() * _SCALE
        gradient += torch.autograd.grad(loss, vectors)[0]
    rest = [word for word in starts.promising(vectors.detach()[0], gradient[0]) if word != usual]
    rows = {word: _row(starts, word) for word in (usual, *rest)}
    sums = dict.fromkeys(rows, 0.0)
    for done, upto in pairwise((0, *_ROUNDS)):
        _try(trial, {word: rows[word] for word in (usual, *rest)}, samples[done:upto], sums)
        rest = sorted(rest, key=sums.__getitem__)[: max(1, len(rest) // 4)]
    return min((usual, *rest), key=sums.__getitem__)


def better(trial: Trial, candidates: Sequence[torch.Tensor]) -> int:
    """Index of the candidate [vectors, dims] with the lowest loss on the pictures, over the same samples for all."""
    sums = dict.fromkeys(range(len(candidates)), 0.0)
    _try(trial, dict(enumerate(candidates)), _trial_samples(trial), sums)
    return min(sums, key=sums.__getitem__)


@torch.no_grad()
def _try(
    trial: Trial, candidates: Mapping[_Key, torch.Tensor], samples: Sequence[TrainingSample], sums: dict[_Key, float]
) -> None:
    """Adds each candidate's losses on `samples` to its sum."""
    rows = [(key, sample) for key in candidates for sample in samples]
    for tried in _batches(rows, trial.max_rows):
        parts = [
            Part(vectors=candidates[key], latents=trial.latents, draws=[sample for _, sample in pairs])
            for key, pairs in groupby(tried, key=itemgetter(0))
        ]
        for (key, _), loss in zip(tried, trial.losses.of(parts).tolist(), strict=True):
            sums[key] += loss


def _trial_samples(trial: Trial) -> list[TrainingSample]:
    """The samples of all rounds, stratified over all timesteps; shuffled, so that those of the first round span them
    too."""
    means, count = trial.latents.means, _ROUNDS[-1]
    samples = samples_of_all_timesteps(
        trial.recipe,
        seed=trial.seed,
        step=TRIAL_STEP,
        count=count,
        latents=len(means),
        templates=trial.templates,
        shape=tuple(means.shape[1:]),
    )
    order = np.random.Generator(np.random.Philox(key=[trial.seed, TRIAL_STEP << 32 | count])).permutation(count)
    return [samples[row] for row in order]


def _row(starts: Initializers, word: str) -> torch.Tensor:
    return starts.vectors(FromWords(words=word), 1).clone()


def _batches(rows: Sequence[_Row], size: int) -> Iterator[Sequence[_Row]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
