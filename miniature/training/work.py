"""The folder of a training of the bundled model, with a subfolder for each stage."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from miniature.training.drawings import CHUNK, Drawings
from miniature.training.layout import LATENT_CHANNELS


@dataclass(frozen=True, kw_only=True)
class Work:
    """Folder, initial weights, device and size of a training."""

    folder: Path
    committed: Path | None = None
    """The folder miniature/, whose weights the training starts from; None: random weights."""
    share: float = 1.0
    """Fraction of the recipe's steps and drawings."""
    device: torch.device
    seed: int = 0
    """Seed of the batches. Weights that the training starts from have already seen the batches of their own seed."""
    latent_channels: int = LATENT_CHANNELS
    """Latent channels of a new VAE and UNet; committed weights have their own number."""

    @property
    def drawings(self) -> Drawings:
        """The training set."""
        return Drawings(self.folder / "drawings", max(CHUNK, int(60_000 * self.share) // CHUNK * CHUNK))

    @property
    def model(self) -> Path:
        """The folder of the unfinished checkpoint."""
        return self.folder / "model"

    def steps(self, full: int) -> int:
        """Steps of a stage that has `full` steps in the recipe."""
        return max(2, int(full * self.share))

    def sentences(self, many: int) -> Iterator[str]:
        """Captions of `many` drawings, with "a style" for a style without a name."""
        for number in range(many):
            for sentence in self.drawings.captions(number, 2):
                yield sentence.with_words(style=None if sentence.form else "a style")
                yield sentence.styled.replace("*", "a style").format("a toy")


def pick_device(name: str | None) -> torch.device:
    """The device `name`; for None cuda if it is available, otherwise cpu."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
