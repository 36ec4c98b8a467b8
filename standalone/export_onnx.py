"""A UNet as one ONNX file, for Triton's onnxruntime backend."""

import warnings
from pathlib import Path
from typing import Any

import torch

FILE = "model.onnx"
_LARGEST = 3 * 2**29  # bytes of weights inside the file; protobuf ends at 2 GiB


class _Called(torch.nn.Module):
    """The UNet as Triton calls it: latents [rows, channels, height, width], timesteps [rows, 1], hidden [rows, length,
    dims]; each row has its own timestep."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        predicted: torch.Tensor = self.unet(
            latents, timesteps.reshape(-1), encoder_hidden_states=hidden, return_dict=False
        )[0]
        return predicted


def write_onnx(unet: Any, folder: Path, *, length: int) -> None:
    """Writes `unet` into `folder`, in its own precision, for any number of rows, any size and any length of prompt;
    `length` is an example. Weights of several GB lie in a second file beside it.

    Takes up to minutes. Raises ModuleNotFoundError where the extra `onnx` is not installed.
    """
    weights = next(unet.parameters())
    cells = unet.config.sample_size
    # No two of the numbers are alike, lest the exporter take one for another.
    example = (
        torch.zeros(2, unet.config.in_channels, cells, cells + 8, dtype=weights.dtype),
        torch.zeros(2, 1),
        torch.zeros(2, length, unet.config.cross_attention_dim, dtype=weights.dtype),
    )
    size = sum(tensor.nbytes for tensor in unet.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
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
            external_data=size > _LARGEST,
            verbose=False,
        )
