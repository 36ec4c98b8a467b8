"""The interface of a denoiser: one call of the UNet, in this process or on Triton (diffusion.triton)."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from diffusion.graphs import Record, RecordedUNet


class Denoiser(Protocol):
    """Predicts the noise in latents. Called by one thread at a time."""

    def predict(
        self, inputs: torch.Tensor, timesteps: torch.Tensor, hidden: torch.Tensor, *, alone: bool = False
    ) -> torch.Tensor:
        """The UNet's output [rows, channels, height, width] for `inputs` of the same shape.

        `timesteps` is [rows], `hidden` [rows, length, dims]; each row has its own. `alone`: rows of other callers must
        not share the forward pass. Raises DenoiserUnavailable (retry later) and DenoiserRefused (do not retry).
        """
        ...


class LocalDenoiser:
    """The UNet in this process.

    With `buckets`, a call is padded to one of these numbers of rows, so that the device sees few shapes (graphs and
    tuned kernels are made for each shape). The padding repeats the last row, and its results are dropped. A call with
    `alone`, or one larger than all buckets, is not padded. With `record`, calls of the buckets' sizes are recorded once
    and then replayed.
    """

    def __init__(self, unet: Any, buckets: Sequence[int] = (), record: Record | None = None) -> None:
        self._unet = unet
        self._buckets = sorted(buckets)
        self._bucketed = unet if record is None else RecordedUNet(unet, record)

    def predict(
        self, inputs: torch.Tensor, timesteps: torch.Tensor, hidden: torch.Tensor, *, alone: bool = False
    ) -> torch.Tensor:
        """See Denoiser.predict."""
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
