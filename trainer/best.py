"""The start that explains some pictures best, by a few forward passes: the vocabulary's words, or given vectors."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from operator import itemgetter
from typing import TypeVar

import numpy as np
import torch

from trainer.draws import Draw, draw
from trainer.latents import Latents
from trainer.losses import Part, RowLosses
from trainer.recipe import Recipe
from trainer.starts import Starts, Words

_Row = TypeVar("_Row")
_Key = TypeVar("_Key", bound=Hashable)
# Draws that a word has been tried on after each round.
_ROUNDS = (4, 16, 32)
_STEP = 2**31 - 1  # that is never trained
_SCALE = 2.0**10  # keeps a gradient in fp16 from vanishing; a ranking does not see it


def best_word(
    usual: str,
    latents: Latents,
    templates: Sequence[Sequence[str]],
    *,
    recipe: Recipe,
    seed: int,
    starts: Starts,
    losses: RowLosses,
    max_rows: int,
) -> str:
    """The word with the lowest loss on the pictures; `usual` where none beats it.

    One backward pass at the usual start says which words are promising; most of them are left out again round by round,
    while the others are tried on more draws, the same for all.
    """
    draws = _draws(latents, templates, recipe=recipe, seed=seed)
    vectors = _row(starts, usual).requires_grad_(True)
    gradient = torch.zeros_like(vectors)
    for batch in _batches(draws, max_rows):
        loss = losses.of([Part(vectors=vectors, latents=latents, draws=batch)]).sum() * _SCALE
        gradient += torch.autograd.grad(loss, vectors)[0]
    rest = [word for word in starts.promising(vectors.detach()[0], gradient[0]) if word != usual]
    rows = {word: _row(starts, word) for word in (usual, *rest)}
    sums = dict.fromkeys(rows, 0.0)
    for done, upto in pairwise((0, *_ROUNDS)):
        _try({word: rows[word] for word in (usual, *rest)}, draws[done:upto], latents, losses, sums, max_rows)
        rest = sorted(rest, key=sums.__getitem__)[: max(1, len(rest) // 4)]
    return min((usual, *rest), key=sums.__getitem__)


def better(
    candidates: Sequence[torch.Tensor],
    latents: Latents,
    templates: Sequence[Sequence[str]],
    *,
    recipe: Recipe,
    seed: int,
    losses: RowLosses,
    max_rows: int,
) -> int:
    """Which of the candidates [vectors, dims] has the lowest loss on the pictures, over the same draws for all."""
    sums = dict.fromkeys(range(len(candidates)), 0.0)
    draws = _draws(latents, templates, recipe=recipe, seed=seed)
    _try(dict(enumerate(candidates)), draws, latents, losses, sums, max_rows)
    return min(sums, key=sums.__getitem__)


@torch.no_grad()
def _try(
    candidates: Mapping[_Key, torch.Tensor],
    draws: Sequence[Draw],
    latents: Latents,
    losses: RowLosses,
    sums: dict[_Key, float],
    max_rows: int,
) -> None:
    """Adds each candidate's losses to its sum."""
    rows = [(key, one) for key in candidates for one in draws]
    for tried in _batches(rows, max_rows):
        parts = [
            Part(vectors=candidates[key], latents=latents, draws=[one for _, one in pairs])
            for key, pairs in groupby(tried, key=itemgetter(0))
        ]
        for (key, _), loss in zip(tried, losses.of(parts).tolist(), strict=True):
            sums[key] += loss


def _draws(latents: Latents, templates: Sequence[Sequence[str]], *, recipe: Recipe, seed: int) -> list[Draw]:
    """As many as the last round tries, over all timesteps, in an order in which the first few span them too."""
    whole = replace(recipe, rows=_ROUNDS[-1], stratified=True)
    shape = tuple(latents.means.shape[1:])
    order = np.random.Generator(np.random.Philox(key=[seed, _STEP << 32 | _ROUNDS[-1]])).permutation(_ROUNDS[-1])
    return [
        draw(whole, seed=seed, step=_STEP, row=int(row), latents=len(latents.means), templates=templates, shape=shape)
        for row in order
    ]


def _row(starts: Starts, word: str) -> torch.Tensor:
    return starts.vectors(Words(words=word), 1).clone()


def _batches(rows: Sequence[_Row], size: int) -> Iterator[Sequence[_Row]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
