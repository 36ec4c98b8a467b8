"""Vectors for toys and styles, computed from their attributes.

With them the text encoder learns that one vector can stand for any toy or style, which makes textual inversion possible
with such a small vocabulary. They are not a part of the model. Measurements use them as an oracle: the vector of a
perfectly learned word.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from miniature.style import STYLES, Style
from miniature.training.layout import WIDTH
from miniature.world import Toy

_FILE = "vectors.safetensors"
_NOISE = 0.03  # standard deviation; makes the meaning of vectors continuous


class Vectors(nn.Module):
    """Two small networks, which map the numbers of a toy or of a style to a vector [WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.toy = _network(31)
        self.style = _network(len(STYLES["photo"].numbers))

    def of_toys(self, toys: list[Toy], generator: torch.Generator | None = None) -> torch.Tensor:
        """Vectors [toys, WIDTH]; with a generator, a little noise is added."""
        return _noisy(self.toy(_numbers([toy.numbers for toy in toys], self)), generator)

    def of_styles(self, styles: list[Style], generator: torch.Generator | None = None) -> torch.Tensor:
        """Vectors [styles, WIDTH]; with a generator, a little noise is added."""
        return _noisy(self.style(_numbers([style.numbers for style in styles], self)), generator)

    def save(self, folder: Path) -> None:
        """Writes the networks in fp16."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: value.half().contiguous() for key, value in self.state_dict().items()}, folder / _FILE)

    @classmethod
    def load(cls, folder: Path) -> "Vectors":
        """Reads the file of `save`. Raises FileNotFoundError."""
        vectors = cls()
        vectors.load_state_dict({key: value.float() for key, value in load_file(folder / _FILE).items()})
        return vectors


def _network(inputs: int) -> nn.Sequential:
    last = nn.Linear(256, WIDTH)
    with torch.no_grad():
        last.weight.mul_(0.15)  # gives the vectors about the norm of the vocabulary's
    return nn.Sequential(nn.Linear(inputs, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), last)


def _numbers(rows: list[tuple[float, ...]], module: nn.Module) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32, device=next(module.parameters()).device)


def _noisy(vectors: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    if generator is None:
        return vectors
    return vectors + _NOISE * torch.randn(vectors.shape, generator=generator).to(vectors.device)
