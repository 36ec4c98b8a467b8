"""The denoiser as a boundary: one call of the UNet, made here or by another machine (diffusion.triton)."""

from typing import Any, Protocol

import torch


class Denoiser(Protocol):
    """What predicts the noise. Called by one thread at a time."""

    def predict(
        self, inputs: torch.Tensor, timesteps: torch.Tensor, hidden: torch.Tensor, *, alone: bool = False
    ) -> torch.Tensor:
        """The UNet's output [rows, channels, height, width] for `inputs` of the same shape.

        `timesteps` is [rows], `hidden` [rows, length, dims]; each row has its own. `alone`: nobody else's rows may
        share the forward pass, where a denoiser serves several callers. Raises DenoiserUnavailable (try again later)
        and DenoiserRefused (do not).
        """
        ...


class LocalDenoiser:
    """The UNet in this process."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet

    def predict(
        self, inputs: torch.Tensor, timesteps: torch.Tensor, hidden: torch.Tensor, *, alone: bool = False
    ) -> torch.Tensor:
        """As Denoiser.predict; nobody else calls it, so every call is `alone`."""
        predicted: torch.Tensor = self._unet(inputs, timesteps, encoder_hidden_states=hidden, return_dict=False)[0]
        return predicted
