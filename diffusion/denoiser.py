"""The denoiser as a boundary: one call of the UNet, made here or by another machine (diffusion.triton)."""

from collections.abc import Sequence
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
    """The UNet in this process.

    With `buckets` a call has one of these numbers of rows, so that a device sees few shapes (graphs and tuned kernels
    are made for each): what is missing to the next one is filled up with its last row, and thrown away. A call that is
    `alone` or larger than all buckets stays as it is.
    """

    def __init__(self, unet: Any, buckets: Sequence[int] = ()) -> None:
        self._unet = unet
        self._buckets = sorted(buckets)

    def predict(
        self, inputs: torch.Tensor, timesteps: torch.Tensor, hidden: torch.Tensor, *, alone: bool = False
    ) -> torch.Tensor:
        """As Denoiser.predict."""
        rows = len(inputs)
        size = rows if alone else next((bucket for bucket in self._buckets if bucket >= rows), rows)
        if size > rows:
            inputs, timesteps, hidden = (
                torch.cat([tensor, tensor[-1:].expand(size - rows, *tensor.shape[1:])])
                for tensor in (inputs, timesteps, hidden)
            )
        predicted: torch.Tensor = self._unet(inputs, timesteps, encoder_hidden_states=hidden, return_dict=False)[0]
        return predicted[:rows]
