"""Random choices from a generator."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

_T = TypeVar("_T")


def choose(rng: np.random.Generator, among: Sequence[_T], *, weights: Sequence[float] | None = None) -> _T:
    """A random item of `among`, with probabilities in proportion to `weights`; None: all equal. Unlike rng.choice,
    keeps the item's type."""
    if weights is None:
        return among[int(rng.integers(len(among)))]
    shares = np.asarray(weights, dtype=np.float64)
    return among[int(rng.choice(len(among), p=shares / shares.sum()))]
