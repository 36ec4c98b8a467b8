"""When a job has learned: a rule for runs of tens of steps, from what training computes anyway. Pure.

Pflug's diagnostic (1990; as Chee and Toulis use it, arXiv 1710.06382): while a constant rate still makes way, one
step's gradient points where the last one did; once the vectors only wander around what they have come to, it points
back. So the rule looks at the cosines of successive gradients and needs no further forward pass; DVAR's rule, which
evaluates a fixed batch at every step, cannot fire before 310 steps.
"""

from collections.abc import Sequence

# Chosen by benchmarks/training/stopping.py on twenty toys; docs/training.md has the table.
WINDOW = 15  # cosines that are looked at
LEAST_STEPS = 20  # before which it never fires
THRESHOLD = 0.0


class StopRule:
    """One job's rule. `recent` is all that it remembers."""

    def __init__(self, recent: Sequence[float] = ()) -> None:
        self.recent = list(recent)

    def fires(self, cosine: float, steps: int) -> bool:
        """Takes in the cosine between the newest gradient and the one before, after `steps` steps."""
        self.recent = [*self.recent, cosine][-WINDOW:]
        full = len(self.recent) == WINDOW and steps >= LEAST_STEPS
        return full and sum(self.recent) / WINDOW < THRESHOLD
