"""Applies the operator's policy to pictures that the checkpoint's safety checker flags."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffusion.safety import SafetyChecker


@dataclass(frozen=True)
class Judged:
    """A checked picture as it is sent; `pixels` is uint8 [height, width, 3], black if it is withheld."""

    pixels: np.ndarray
    flagged: bool = False
    withheld: bool = False


class Safety:
    """A safety checker, and whether flagged pictures are withheld."""

    def __init__(self, checker: SafetyChecker, *, withholds: bool) -> None:
        self._checker = checker
        self.withholds = withholds

    def judge(self, pictures: Sequence[np.ndarray]) -> Sequence[Judged]:
        """Checks `pictures` and applies the policy to each."""
        return [
            Judged(np.zeros_like(pixels) if flagged and self.withholds else pixels, flagged, flagged and self.withholds)
            for pixels, flagged in zip(pictures, self._checker.check(pictures), strict=True)
        ]
