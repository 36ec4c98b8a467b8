"""pseudoword's model for Triton's Python backend: one call of the UNet for the rows of all waiting requests.

`pseudoword export-triton` copies this file into the model repository, so it uses torch and diffusers only.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.utils.dlpack
import triton_python_backend_utils as triton
from diffusers import UNet2DConditionModel

_DTYPES = {"TYPE_FP32": torch.float32, "TYPE_FP16": torch.float16, "TYPE_BF16": torch.bfloat16}


class TritonPythonModel:
    """Triton creates one for each instance of the model; Triton defines the names and arguments of the methods."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the UNet onto this instance's device."""
        config = json.loads(args["model_config"])
        self._digest = config["parameters"]["digest"]["string_value"]
        on_gpu = args["model_instance_kind"] == "GPU"
        self._device = torch.device(f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu")
        kinds = {given["name"]: given["data_type"] for given in config["input"]}
        folder = Path(args["model_repository"]) / args["model_version"] / "unet"
        unet = UNet2DConditionModel.from_pretrained(folder, torch_dtype=_DTYPES[kinds["latents"]], use_safetensors=True)
        self._unet = unet.to(self._device).eval().requires_grad_(False)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response per request, in order. Triton passes requests of one shape, and does not concatenate them itself
        (server issue 5926)."""
        responses: dict[int, Any] = {}
        together: list[int] = []
        for index, request in enumerate(requests):
            parameters = json.loads(request.parameters() or "{}")
            if parameters.get("digest", self._digest) != self._digest:
                error = triton.TritonError(
                    f"this model's digest of the weights is {self._digest}, the caller's is {parameters['digest']}: "
                    "serve and load the same checkpoint",
                    triton.TritonError.INVALID_ARG,
                )
                responses[index] = triton.InferenceResponse(error=error)
            elif parameters.get("alone"):
                responses |= self._run(requests, [index])
            else:
                together.append(index)
        if together:
            responses |= self._run(requests, together)
        return [responses[index] for index in range(len(requests))]

    @torch.inference_mode()
    def _run(self, requests: Sequence[Any], chosen: Sequence[int]) -> dict[int, Any]:
        latents, timesteps, hidden = (
            torch.cat([self._tensor(requests[index], name) for index in chosen])
            for name in ("latents", "timesteps", "hidden")
        )
        # Each row has its own timestep, because the rows of a call are at different steps.
        predicted = self._unet(latents, timesteps.flatten(), encoder_hidden_states=hidden, return_dict=False)[0].cpu()
        counts = [len(self._tensor(requests[index], "timesteps")) for index in chosen]
        return {
            index: triton.InferenceResponse([triton.Tensor.from_dlpack("predicted", rows.contiguous())])
            for index, rows in zip(chosen, predicted.split(counts), strict=True)
        }

    def _tensor(self, request: Any, name: str) -> torch.Tensor:
        # Via DLPack, because numpy has no bfloat16.
        given = triton.get_input_tensor_by_name(request, name)
        tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(given.to_dlpack())
        return tensor.to(self._device)
