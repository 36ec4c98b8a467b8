"""Loss curves as pictures."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

_SMOOTHING = 0.9  # decay of the exponential mean that is drawn over the raw losses


def loss_curve(path: Path, steps: Sequence[int], losses: Sequence[float], title: str) -> None:
    """Draws the denoising loss over optimiser steps, raw and smoothed, into a PNG."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="step")
    axes.plot(steps, _smoothed(losses), color="tab:blue", linewidth=2, label="smoothed")
    axes.set(title=title, xlabel="optimiser step", ylabel="denoising loss (mean squared error)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _smoothed(losses: Sequence[float]) -> list[float]:
    """Exponential mean, corrected for its initial bias as in Adam (Kingma and Ba 2015, section 3)."""
    smooth, mean = [], 0.0
    for count, loss in enumerate(losses, start=1):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        smooth.append(mean / (1 - _SMOOTHING**count))
    return smooth
