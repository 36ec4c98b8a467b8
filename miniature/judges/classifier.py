"""A convolutional classifier of drawings, with one output for each attribute. It uses no text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from miniature.judges.attributes import ATTRIBUTES

BUNDLED = Path(__file__).parents[1] / "classifier"
_FILE = "classifier.safetensors"
_WIDTHS = (32, 64, 128, 192)


class _Block(nn.Module):
    """Two convolutions with a shortcut (He et al. 2016); the first has the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.GroupNorm(8, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.GroupNorm(8, outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = nn.functional.silu(self.first_norm(self.first(x)))
        result: torch.Tensor = nn.functional.silu(self.second_norm(self.second(inner)) + self.short(x))
        return result


class Classifier(nn.Module):
    """Maps pictures [n, 3, 64, 64] in [-1, 1] to logits [n, answers] of each attribute; 0.9 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, _WIDTHS[0], 3, 2, 1)
        widths = zip((_WIDTHS[0], *_WIDTHS[:-1]), _WIDTHS, (1, 2, 2, 2), strict=True)
        self.blocks = nn.Sequential(*(_Block(inputs, outputs, stride) for inputs, outputs, stride in widths))
        self.heads = nn.ModuleDict(
            {name: nn.Linear(2 * _WIDTHS[-1], len(attribute.answers)) for name, attribute in ATTRIBUTES.items()}
        )

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.blocks(self.stem(pixels))
        pooled = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)
        return {name: head(pooled) for name, head in self.heads.items()}

    def save(self, folder: Path) -> None:
        """Writes the network in fp16."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: value.half().contiguous() for key, value in self.state_dict().items()}, folder / _FILE)

    @classmethod
    def load(cls, folder: Path = BUNDLED) -> "Classifier":
        """Reads the file of `save`, frozen. Raises FileNotFoundError."""
        classifier = cls()
        classifier.load_state_dict({key: value.float() for key, value in load_file(folder / _FILE).items()})
        return classifier.eval().requires_grad_(False)

    @torch.no_grad()
    def judge(self, images: list[Image.Image]) -> Mapping[str, torch.Tensor]:
        """Probabilities [images, answers] of each attribute."""
        return {name: logits.softmax(dim=1) for name, logits in self(pixels_of(images)).items()}


def pixels_of(images: list[Image.Image]) -> torch.Tensor:
    """Pixels [images, 3, height, width] in [-1, 1]."""
    arrays: Any = np.stack([np.asarray(image.convert("RGB"), np.float32) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1
