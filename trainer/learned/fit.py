"""Fits the network: to words that were learned before, or without a word by the denoising loss on the pictures."""

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

LATENT_NOISE = 0.05  # standard deviation of the noise on latents, so that similar pictures give similar vectors
_MAX_INPUTS = 5  # maximum pictures of a concept that the network gets as input
_ROWS = 2  # rows of each concept in the denoising loss
_LENGTH = 0.01  # weight of a vector's squared distance, in RMS, from the vocabulary's mean length


class ConceptsLoss:
    """The network's loss on a batch of concepts, in the form that `fitting.train` needs.

    For a concept with a word: the mean squared distance from the word, in units of the vocabulary's mean square. For a
    concept without one: the denoising loss (arXiv 2208.01618, eq. 1) of its pictures under its vector, plus a small
    penalty for vectors much longer or shorter than the vocabulary's.
    """

    def __init__(
        self, model: BaseModel, network: StartNetwork, concepts: Mapping[str, Sequence[Concept]], batch: int
    ) -> None:
        """`concepts` by kind; a batch has `batch` concepts of each kind."""
        self._network = network
        self._concepts = concepts
        self._batch = batch
        encoder = PromptEncoder(model)
        self._losses = RowLosses(model, encoder)
        table = encoder.vocabulary.detach().float()
        self._rms = unit_of(table)
        self._length = table.norm(dim=-1).mean() / self._rms

    def __call__(self, generator: torch.Generator) -> torch.Tensor:
        """The loss of one batch: the sum over the kinds."""
        return torch.stack([self._loss_of_kind(kind, some, generator) for kind, some in self._concepts.items()]).sum()

    def _loss_of_kind(self, kind: str, concepts: Sequence[Concept], generator: torch.Generator) -> torch.Tensor:
        picked = [concepts[int(index)] for index in torch.randint(len(concepts), (self._batch,), generator=generator)]
        vectors = self._network([_noisy_inputs(one, generator) for one in picked], kind)
        total = vectors.new_zeros(())
        for vector, one in zip(vectors, picked, strict=True):
            if one.vector is not None:
                total = total + (vector - one.vector.to(vector.device) / self._rms).square().mean()
        unknown = [place for place, one in enumerate(picked) if one.vector is None]
        if unknown:
            seed = int(torch.randint(2**31, (1,), generator=generator))
            total = total + self._denoising_loss([picked[place] for place in unknown], vectors[unknown], kind, seed)
        mean: torch.Tensor = total / len(picked)
        return mean

    def _denoising_loss(self, concepts: Sequence[Concept], vectors: torch.Tensor, kind: str, seed: int) -> torch.Tensor:
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
    """Fits a network to concepts by kind. Writes into `folder` a checkpoint, from which a killed run resumes, and
    loss.png."""
    torch.manual_seed(plan.seed)
    network = StartNetwork(model.spec.latent_channels, model.spec.encoders[0].dims, tuple(concepts)).to(model.device)
    train("learned start", network, plan, ConceptsLoss(model, network, concepts, plan.batch), folder)
    return network


def _noisy_inputs(concept: Concept, generator: torch.Generator) -> torch.Tensor:
    """A random choice of a concept's latents [pictures, channels, h, w], with a little noise."""
    means = concept.latents.means
    count = int(torch.randint(1, min(_MAX_INPUTS, len(means)) + 1, (1,), generator=generator))
    some = means[torch.randperm(len(means), generator=generator)[:count]]
    return some + LATENT_NOISE * torch.randn(some.shape, generator=generator).to(some.device)
