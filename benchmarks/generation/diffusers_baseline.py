"""The baseline: diffusers' pipeline behind a lock, with load_textual_inversion for each request."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from safetensors.numpy import save_file

from benchmarks.generation.workload import DrawRequest
from diffusion.schedulers import SCHEDULERS
from diffusion.spec import BUNDLED


class DiffusersBaseline:
    """One resident pipeline, which draws one request at a time."""

    def __init__(self, source: str | None, device: str, words: Mapping[str, np.ndarray]) -> None:
        pipeline: Any = diffusers.StableDiffusionPipeline.from_pretrained(
            source or str(BUNDLED), dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        self._pipeline = pipeline.to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._config = pipeline.scheduler.config
        self._folder = tempfile.TemporaryDirectory()
        for name, tensor in words.items():
            save_file({f"<{name}>": tensor}, Path(self._folder.name) / f"{name}.safetensors")

    def draw(self, workload: Sequence[DrawRequest]) -> None:
        """Draws all requests, one after the other."""
        for one in workload:
            kind = SCHEDULERS[one.scheduler]
            self._pipeline.load_textual_inversion(self._folder.name, weight_name=f"{one.word}.safetensors")
            self._pipeline.scheduler = getattr(diffusers, kind.class_name).from_config(self._config, **kind.arguments)
            self._pipeline(
                one.prompt,
                num_inference_steps=one.steps,
                guidance_scale=one.guidance,
                generator=torch.Generator("cpu").manual_seed(one.seed),
            )
            self._pipeline.unload_textual_inversion()
