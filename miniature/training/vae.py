"""The VAE's loss.

The encoder is deterministic. Instead of a KL term, a little noise is added to the latents, which keeps them smooth; the
log-variance is set to a constant at the end. Edges and the two colour axes have their own terms: without them small
details blur, and the green-magenta axis is lost.
"""

from typing import Any

import torch
from torch.nn import functional

from miniature.training.judging import Batches

_NOISE = 0.05  # standard deviation of the noise on unscaled latents
_SHRINK = 2e-4  # weight of the latents' mean square
_LOG_VARIANCE = -8.0


class VaeLoss:
    """The loss of one batch. With `decoder_only` the encoder is not trained, so that a UNet that was trained on its
    latents remains valid."""

    def __init__(self, vae: Any, batches: Batches, *, decoder_only: bool) -> None:
        self._vae = vae
        self._batches = batches
        self._decoder_only = decoder_only

    def __call__(self, generator: torch.Generator) -> torch.Tensor:
        """The absolute errors of pixels, of the differences between neighbours, and of the mean colours of 4 x 4
        pixels."""
        _, pixels = self._batches.draw(generator)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(not self._decoder_only):
            latents = self._vae.encode(pixels).latent_dist.mean
        noise = _NOISE * torch.randn(latents.shape, generator=generator).to(latents.device)
        decoded = self._vae.decode(latents + noise).sample.float()
        error = decoded - pixels
        coarse = functional.avg_pool2d(error, 4)
        red_green = coarse[:, 0] - coarse[:, 1]
        blue_yellow = coarse[:, 2] - (coarse[:, 0] + coarse[:, 1]) / 2
        edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        axes = 2 * red_green.abs().mean() + blue_yellow.abs().mean()
        loss: torch.Tensor = error.abs().mean() + 0.5 * edges + coarse.abs().mean() + axes
        return loss if self._decoder_only else loss + _SHRINK * latents.square().mean()


def trainable(vae: Any, *, decoder_only: bool) -> torch.nn.ModuleDict:
    """The trained modules, with gradients enabled."""
    names = ["decoder", "post_quant_conv"] + ([] if decoder_only else ["encoder", "quant_conv"])
    vae.requires_grad_(False)
    return torch.nn.ModuleDict({name: getattr(vae, name) for name in names}).requires_grad_(True)


@torch.no_grad()
def settle(vae: Any, pixels: torch.Tensor) -> None:
    """Sets the log-variance, and the scaling factor with which latents of `pixels` [n, 3, height, width] have a
    standard deviation of 1."""
    channels = vae.config.latent_channels
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = _LOG_VARIANCE
    deviation = torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(pixels, 64)]).std()
    vae.register_to_config(scaling_factor=1 / deviation.item())
