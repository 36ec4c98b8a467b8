"""Fitting the network: to words learned before where there are some, else by the denoising loss on the pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from diffusion.checkpoint import BaseModel
from diffusion.encoder import PromptEncoder
from trainer.learned.concepts import Concept
from trainer.learned.fitting import Plan, train
from trainer.training.losses import Part, RowLosses
from trainer.training.recipe import OBJECT
from trainer.training.samples import draw
from trainer.training.start_network import StartNetwork, unit_of
from trainer.training.templates import TEMPLATES

LATENT_NOISE = 0.05  # deviation of the noise on latents, so that near pictures give near vectors
_SHOWN = 5  # pictures of a concept at a time, at most
_ROWS = 2  # denoised of each concept
_LENGTH = 0.01  # weight of a vector's squared distance, in RMS, from the vocabulary's mean length


class ConceptsLoss:
    """What the network's vectors cost on a batch of concepts, as `fitting.train` asks for it.

    Where a word was learned before: the mean squared distance from it in units of the vocabulary's mean square. Where
    none was: the denoising loss (arXiv 2208.01618, eq. 1) of the concept's pictures under its vector, and a little for
    vectors much longer or shorter than the vocabulary's.
    """

    def __init__(
        self, model: BaseModel, network: StartNetwork, concepts: Mapping[str, Sequence[Concept]], batch: int
    ) -> None:
        """`concepts` by kind; a batch has `batch` of each kind."""
        self._network = network
        self._concepts = concepts
        self._batch = batch
        encoder = PromptEncoder(model)
        self._losses = RowLosses(model, encoder)
        table = encoder.vocabulary.detach().float()
        self._rms = unit_of(table)
        self._length = table.norm(dim=-1).mean() / self._rms

    def __call__(self, generator: torch.Generator) -> torch.Tensor:
        """The loss of one batch, a sum over the kinds."""
        return torch.stack([self._of(kind, some, generator) for kind, some in self._concepts.items()]).sum()

    def _of(self, kind: str, concepts: Sequence[Concept], generator: torch.Generator) -> torch.Tensor:
        picked = [concepts[int(index)] for index in torch.randint(len(concepts), (self._batch,), generator=generator)]
        vectors = self._network([_shown(one, generator) for one in picked], kind)
        total = vectors.new_zeros(())
        for vector, one in zip(vectors, picked, strict=True):
            if one.vector is not None:
                total = total + (vector - one.vector.to(vector.device) / self._rms).square().mean()
        unknown = [place for place, one in enumerate(picked) if one.vector is None]
        if unknown:
            seed = int(torch.randint(2**31, (1,), generator=generator))
            total = total + self._denoised([picked[place] for place in unknown], vectors[unknown], kind, seed)
        mean: torch.Tensor = total / len(picked)
        return mean

    def _denoised(self, concepts: Sequence[Concept], vectors: torch.Tensor, kind: str, seed: int) -> torch.Tensor:
        recipe = replace(OBJECT, rows=_ROWS * len(concepts))
        parts = [
            Part(
                vectors=vector[None] * self._rms,
                latents=one.latents,
                draws=[
                    draw(
                        recipe,
                        seed=seed,
                        step=0,
                        row=place + row * len(concepts),
                        latents=len(one.latents.means),
                        templates=[TEMPLATES[kind]],
                        shape=tuple(one.latents.means.shape[1:]),
                    )
                    for row in range(_ROWS)
                ],
            )
            for place, (vector, one) in enumerate(zip(vectors, concepts, strict=True))
        ]
        length = (vectors.norm(dim=-1) / self._length - 1).square().sum() * self._length**2
        loss: torch.Tensor = self._losses.of(parts).sum() / _ROWS + _LENGTH * length
        return loss


def fit(model: BaseModel, concepts: Mapping[str, Sequence[Concept]], plan: Plan, folder: Path) -> StartNetwork:
    """Fits a network to concepts by kind. `folder` gets what a run that was killed goes on from, and loss.png."""
    torch.manual_seed(plan.seed)
    network = StartNetwork(model.spec.latent_channels, model.spec.encoders[0].dims, tuple(concepts)).to(model.device)
    train("learned start", network, plan, ConceptsLoss(model, network, concepts, plan.batch), folder)
    return network


def _shown(concept: Concept, generator: torch.Generator) -> torch.Tensor:
    """Some of a concept's latents [pictures, channels, h, w], a little noisy."""
    means = concept.latents.means
    count = int(torch.randint(1, min(_SHOWN, len(means)) + 1, (1,), generator=generator))
    some = means[torch.randperm(len(means), generator=generator)[:count]]
    return some + LATENT_NOISE * torch.randn(some.shape, generator=generator).to(some.device)
