"""The loss of the bundled model's learned start, which predicts from drawings the vectors that the diffusion was
trained with."""

from typing import Any

import torch

from diffusion.checkpoint import BaseModel
from miniature.training.drawings import Drawings
from miniature.training.vectors import Vectors
from trainer.learned.fit import LATENT_NOISE
from trainer.training.start_network import KINDS, StartNetwork, unit_of


class StartLoss:
    """The squared distance to the known vectors, relative to their variance; a loss for `fitting.train`.

    Objects are learned from photos of a single toy, styles from drawings in any style. Each drawing is a sample of its
    own: for several pictures the network averages over the pictures.
    """

    def __init__(
        self,
        model: BaseModel,
        network: StartNetwork,
        vectors: Vectors,
        drawings: Drawings,
        latents: torch.Tensor,
        batch: int,
    ) -> None:
        """`latents` [drawings, channels, cells, cells] are scaled; a batch has `batch` drawings of each kind."""
        self._network = network
        self._latents = latents
        self._batch = batch
        shown = [drawings.drawing(number) for number in range(drawings.count)]
        photos = [number for number, one in enumerate(shown) if one.style.name == "photo" and one.other is None]
        styled = [number for number, one in enumerate(shown) if one.style.name != "photo"]
        self._numbers = {"object": torch.tensor(photos), "style": torch.tensor(styled)}
        with torch.no_grad():
            made: dict[str, Any] = {
                "object": vectors.of_toys([shown[number].toy for number in photos]),
                "style": vectors.of_styles([shown[number].style for number in styled]),
            }
        rms = unit_of(model.embedding.table.weight.detach().float())
        self._targets = {kind: target / rms for kind, target in made.items()}
        self._spread = {kind: target.var(dim=0).mean() for kind, target in self._targets.items()}

    def __call__(self, generator: torch.Generator) -> torch.Tensor:
        """The loss of one batch, summed over the kinds; a network that always predicts the mean has 1 for each kind."""
        losses = []
        for kind in KINDS:
            numbers, targets = self._numbers[kind], self._targets[kind]
            rows = torch.randint(len(numbers), (self._batch,), generator=generator)
            shown = self._latents[numbers[rows]].float()
            shown = (shown + LATENT_NOISE * torch.randn(shown.shape, generator=generator)).to(targets.device)
            predicted = self._network(list(torch.split(shown, 1)), kind)
            losses.append((predicted - targets[rows.to(targets.device)]).square().mean() / self._spread[kind])
        return torch.stack(losses).sum()
