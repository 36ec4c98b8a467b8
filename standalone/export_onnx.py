"""Exports a UNet to ONNX, for Triton's onnxruntime backend."""

import warnings
from pathlib import Path
from typing import Any

import torch

FILE = "model.onnx"
_MAX_INLINE_BYTES = 3 * 2**29  # of weights inside the file; protobuf's limit is 2 GiB


class _Called(torch.nn.Module):
    """The UNet with the inputs of Triton's model: latents [rows, channels, height, width], timesteps [rows, 1], hidden
    [rows, length, dims]; each row has its own timestep."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        predicted: torch.Tensor = self.unet(
            latents, timesteps.reshape(-1), encoder_hidden_states=hidden, return_dict=False
        )[0]
        return predicted


def write_onnx(unet: Any, folder: Path, *, length: int) -> None:
    """Write `unet` into `folder`, in its own precision, for any number of rows, any size and any length of prompt;
    `length` is only the example's. Weights above 1.5 GiB are written into a second file.

    Takes up to minutes. Raises ModuleNotFoundError when the extra `onnx` is not installed.
    """
    weights = next(unet.parameters())
    cells = unet.config.sample_size
    # All sizes differ, so that the exporter cannot mistake one dimension for another.
    example = (
        torch.zeros(2, unet.config.in_channels, cells, cells + 8, dtype=weights.dtype),
        torch.zeros(2, 1),
        torch.zeros(2, length, unet.config.cross_attention_dim, dtype=weights.dtype),
    )
    size = sum(tensor.nbytes for tensor in unet.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about the exporter itself
        torch.onnx.export(
            _Called(unet).eval(),
            example,
            folder / FILE,
            input_names=["latents", "timesteps", "hidden"],
            output_names=["predicted"],
            dynamic_shapes={
                "latents": {0: "rows", 2: "height", 3: "width"},
                "timesteps": {0: "rows"},
                "hidden": {0: "rows", 1: "length"},
            },
            dynamo=True,
            external_data=size > _MAX_INLINE_BYTES,
            verbose=False,
        )
