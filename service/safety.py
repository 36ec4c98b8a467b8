"""What becomes of pictures to which the checkpoint's safety checker objects: the operator's policy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffusion.safety import SafetyChecker


@dataclass(frozen=True)
class Judged:
    """A picture as it is sent; `pixels` is uint8 [height, width, 3]."""

    pixels: np.ndarray
    flagged: bool = False
    withheld: bool = False


class Safety:
    """A checker, and whether what it objects to is withheld."""

    def __init__(self, checker: SafetyChecker, *, withholds: bool) -> None:
        self._checker = checker
        self.withholds = withholds

    def judge(self, pictures: Sequence[np.ndarray]) -> Sequence[Judged]:
        """Each of `pictures` as the policy has it."""
        return [
            Judged(np.zeros_like(pixels) if found and self.withholds else pixels, found, found and self.withholds)
            for pixels, found in zip(pictures, self._checker.check(pictures), strict=True)
        ]
