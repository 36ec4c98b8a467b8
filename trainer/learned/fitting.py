"""A training loop that can be killed at any moment and resumes from its last checkpoint."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from trainer.plots import loss_curve

_SAVE_EVERY_S = 60
_SMOOTHING = 0.98  # decay of the exponential mean of the displayed loss


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Steps and learning rate. The rate rises over `warmup` steps and falls along a cosine to `floor` of its peak."""

    steps: int
    batch: int
    rate: float
    warmup: int = 200
    floor: float = 0.03
    averaging: float = 0.9995
    """Decay of the weights' exponential moving average, reached gradually."""
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Learning rate of step `step`, the first being 0."""
        fall = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.rate * min(1, (step + 1) / self.warmup) * (fall * (1 - self.floor) + self.floor)


def train(
    name: str, module: nn.Module, plan: Plan, loss: Callable[[torch.Generator], torch.Tensor], folder: Path
) -> None:
    """Trains `module` by the loss of one batch, then loads the average of its weights and freezes it.

    `loss` must take all randomness from the generator that it gets, which depends on the seed and the step only. A run
    that was killed and restarted therefore makes the same steps. Writes checkpoint.pt once a minute, and loss.png, into
    `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    average = {key: value.detach().clone() for key, value in module.state_dict().items()}
    optimizer = torch.optim.AdamW(module.parameters(), lr=plan.rate, betas=(0.9, 0.99), weight_decay=0.01)
    losses: list[float] = []
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(state["module"])
        average = state["average"]
        optimizer.load_state_dict(state["optimizer"])
        losses = state["losses"].tolist()

    def save() -> None:
        partial = checkpoint.with_suffix(".part")
        torch.save(
            {
                "module": module.state_dict(),
                "average": average,
                "optimizer": optimizer.state_dict(),
                "losses": torch.tensor(losses, dtype=torch.float64),
            },
            partial,
        )
        partial.replace(checkpoint)
        stride = max(1, len(losses) // 1000)
        loss_curve(folder / "loss.png", range(0, len(losses), stride), losses[::stride], name)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    saved = time.monotonic()
    with Progress(*columns, refresh_per_second=1, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=plan.steps, completed=len(losses))
        smooth = losses[-1] if losses else math.nan
        for step in range(len(losses), plan.steps):
            for group in optimizer.param_groups:
                group["lr"] = plan.rate_at(step)
            generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
            value = loss(generator)
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            _update_average(average, module.state_dict(), min(plan.averaging, (1 + step) / (10 + step)))
            losses.append(value.item())
            smooth = losses[-1] if math.isnan(smooth) else _SMOOTHING * smooth + (1 - _SMOOTHING) * losses[-1]
            progress.update(task, completed=step + 1, description=f"{name}, loss {smooth:.4f}")
            if time.monotonic() - saved > _SAVE_EVERY_S:
                save()
                saved = time.monotonic()
    save()
    module.load_state_dict(average)
    module.eval().requires_grad_(False)


@torch.no_grad()
def _update_average(average: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], decay: float) -> None:
    for key, value in average.items():
        if value.is_floating_point():
            value.lerp_(weights[key], 1 - decay)
        else:
            value.copy_(weights[key])
