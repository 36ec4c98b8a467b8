"""The denoiser as a boundary: one call of the UNet, made here or by another machine (diffusion.triton)."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from diffusion.graphs import Record, RecordedUNet


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
    `alone` or larger than all buckets stays as it is. With `record` calls of the buckets' sizes are recorded once and
    then played.
    """

    def __init__(self, unet: Any, buckets: Sequence[int] = (), record: Record | None = None) -> None:
        self._unet = unet
        self._buckets = sorted(buckets)
        self._bucketed = unet if record is None else RecordedUNet(unet, record)

    def predict(
        self, inputs: torch.Tensor, timesteps: torch.Tensor, hidden: torch.Tensor, *, alone: bool = False
    ) -> torch.Tensor:
        """As Denoiser.predict."""
        rows = len(inputs)
        size = None if alone else next((bucket for bucket in self._buckets if bucket >= rows), None)
        unet = self._unet if size is None else self._bucketed
        size = size or rows
        if size > rows:
            inputs, timesteps, hidden = (
                torch.cat([tensor, tensor[-1:].expand(size - rows, *tensor.shape[1:])])
                for tensor in (inputs, timesteps, hidden)
            )
        predicted: torch.Tensor = unet(inputs, timesteps, encoder_hidden_states=hidden, return_dict=False)[0]
        return predicted[:rows]
