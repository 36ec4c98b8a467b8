"""Draws from a generator."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

_T = TypeVar("_T")


def choose(rng: np.random.Generator, among: Sequence[_T], *, weights: Sequence[float] | None = None) -> _T:
    """One of `among`, each as often as its weight says, or all alike. Keeps the type, as rng.choice does not."""
    if weights is None:
        return among[int(rng.integers(len(among)))]
    shares = np.asarray(weights, dtype=np.float64)
    return among[int(rng.choice(len(among), p=shares / shares.sum()))]
