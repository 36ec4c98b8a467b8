"""Latents of a job's pictures, encoded once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps

from diffusion.checkpoint import BaseModel
from diffusion.pictures import square
from trainer.errors import MaskEmpty

_MIN_MASK = 0.02  # minimum value of a mask's whitest cell, in [0, 1]


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Means and standard deviations of the pictures' scaled latents, [pictures (twice as many with mirrors), c, h, w].
    `weights` [pictures, 1, h, w] of the squared error have the mean 1 in each picture."""

    means: torch.Tensor
    deviations: torch.Tensor
    weights: torch.Tensor


@torch.no_grad()
def encode_pictures(
    model: BaseModel, pictures: Sequence[Image.Image], masks: Sequence[Image.Image | None], *, flips: bool
) -> Latents:
    """Latents of the middle squares of `pictures` (RGB, upright), each encoded in a batch of its own; with `flips`,
    their mirrors follow. `masks` are white where the thing is and None for a picture without a mask; the sequence may
    be empty. Raises MaskEmpty."""
    size = model.spec.sample_size_px
    arrays = [np.asarray(square(picture, size), dtype=np.float32) / 127.5 - 1 for picture in pictures]
    chosen = list(masks) or [None] * len(arrays)
    if flips:
        arrays += [array[:, ::-1] for array in arrays]
        chosen += [None if mask is None else ImageOps.mirror(mask) for mask in chosen]
    means, deviations = [], []
    for array in arrays:
        pixels = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)[None]
        posterior = model.vae.encode(pixels.to(model.device, model.dtype)).latent_dist
        means.append(posterior.mean.float() * model.vae.config.scaling_factor)
        deviations.append(posterior.std.float() * model.vae.config.scaling_factor)
    together = torch.cat(means)
    weights = torch.stack([_weights(mask, size, together.shape[-1]) for mask in chosen])
    return Latents(means=together, deviations=torch.cat(deviations), weights=weights.to(model.device))


def _weights(mask: Image.Image | None, size_px: int, cells: int) -> torch.Tensor:
    """[1, cells, cells] with mean 1: the white share of each latent cell in `mask`; 1 everywhere without a mask. Raises
    MaskEmpty if nothing in the mask is white."""
    if mask is None:
        return torch.ones(1, cells, cells)
    grey = square(mask, size_px).convert("L").resize((cells, cells), Image.Resampling.BOX)
    share = torch.from_numpy(np.asarray(grey, dtype=np.float32) / 255)
    if share.max() < _MIN_MASK:
        raise MaskEmpty("a mask has nothing white in the middle square of its picture: paint the thing white")
    return (share / share.mean())[None]
