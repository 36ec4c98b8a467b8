"""Decodes latents to pixels."""

from collections.abc import Sequence

import numpy as np
import torch

from diffusion.checkpoint import BaseModel


def decode(model: BaseModel, latents: torch.Tensor) -> Sequence[np.ndarray]:
    """Decode finished `latents` [n, channels, h, w] to pictures, uint8 [height, width, 3] each; rounded as in
    diffusers."""
    pixels = model.vae.decode(latents / model.vae.config.scaling_factor, return_dict=False)[0]
    shares = (pixels * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
    return list((shares * 255).round().astype(np.uint8))


def preview(model: BaseModel, latents: torch.Tensor) -> Sequence[np.ndarray]:
    """Small pictures of `latents`, which may still be noisy: one pixel per latent cell, a linear estimate of its
    colour."""
    cells = latents.float().permute(0, 2, 3, 1)
    shares = torch.cat([cells, torch.ones_like(cells[..., :1])], dim=-1) @ model.latent_rgb
    return list((shares.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
