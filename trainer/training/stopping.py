"""The stopping rule, for runs of tens of steps: uses only values that training computes anyway. Pure.

Pflug's diagnostic (1990; as Chee and Toulis use it, arXiv 1710.06382). While a constant rate still makes progress,
successive gradients point in similar directions; once the vectors only fluctuate around their final values, they point
in opposite ones. The rule therefore averages the cosines of successive gradients and needs no further forward pass.
DVAR's rule, in contrast, evaluates a fixed batch at every step and cannot fire before 310 steps.
"""

from collections.abc import Sequence

# Chosen by benchmarks/training/stopping.py on twenty toys; docs/measurements/training.md has the table.
WINDOW = 15  # number of cosines that are averaged
LEAST_STEPS = 20  # the rule never fires earlier
THRESHOLD = 0.0


class StopRule:
    """One job's rule. `recent`, the last cosines, is its whole state."""

    def __init__(self, recent: Sequence[float] = ()) -> None:
        self.recent = list(recent)

    def fires(self, cosine: float, steps: int) -> bool:
        """Adds the cosine between the newest gradient and the one before, after `steps` steps. Returns whether the rule
        fires."""
        self.recent = [*self.recent, cosine][-WINDOW:]
        full = len(self.recent) == WINDOW and steps >= LEAST_STEPS
        return full and sum(self.recent) / WINDOW < THRESHOLD
