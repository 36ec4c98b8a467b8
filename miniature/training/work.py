"""The folder in which the models are made, a subfolder for each stage; what is finished there is not done again."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from miniature.training.drawings import CHUNK, Drawings
from miniature.training.layout import LATENT_CHANNELS


@dataclass(frozen=True, kw_only=True)
class Work:
    """Where, from what, and how much of the full recipe."""

    folder: Path
    committed: Path | None = None
    """miniature/, whose weights are gone on from; None: everything anew."""
    share: float = 1.0
    """Of each stage's steps and of the drawings; 1 is the recipe."""
    device: torch.device
    seed: int = 0
    """Of what each step draws. Weights that are gone on from have seen what the seed before drew."""
    latent_channels: int = LATENT_CHANNELS
    """Of what is made anew; committed weights have theirs."""

    @property
    def drawings(self) -> Drawings:
        """What is trained on."""
        return Drawings(self.folder / "drawings", max(CHUNK, int(60_000 * self.share) // CHUNK * CHUNK))

    @property
    def model(self) -> Path:
        """The checkpoint as far as it is made."""
        return self.folder / "model"

    def steps(self, full: int) -> int:
        """Steps of a stage that takes `full` in the recipe."""
        return max(2, int(full * self.share))

    def sentences(self, many: int) -> Iterator[str]:
        """Captions of `many` drawings, each sentence with every name for a style that has none left out."""
        for number in range(many):
            for said in self.drawings.captions(number, 2):
                yield said.with_words(style=None if said.form else "a style")
                yield said.styled.replace("*", "a style").format("a toy")


def pick_device(name: str | None) -> torch.device:
    """The device asked for, or the best one that is there."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
