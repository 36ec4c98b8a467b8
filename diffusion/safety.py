"""A checkpoint's own safety checker, run on finished pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPImageProcessor

from diffusion.errors import CheckpointInvalid
from diffusion.spec import BUNDLED


class SafetyChecker:
    """diffusers' StableDiffusionSafetyChecker with the weights and thresholds that came with the checkpoint."""

    def __init__(self, checker: Any, processor: Any, device: torch.device) -> None:
        self._checker = checker.to(device).eval()
        self._processor = processor
        self._device = device

    @classmethod
    def load(cls, source: str | None, *, device: torch.device, revision: str | None = None) -> Self:
        """That of a folder or a hub id; None: the bundled miniature. Raises CheckpointInvalid when it has none.

        Only safetensors are read.
        """
        place = str(BUNDLED) if source is None else source
        if place.startswith("~"):
            place = str(Path(place).expanduser())
        try:
            checker = StableDiffusionSafetyChecker.from_pretrained(
                place, subfolder="safety_checker", revision=revision, use_safetensors=True
            )
            processor = CLIPImageProcessor.from_pretrained(place, subfolder="feature_extractor", revision=revision)
        except Exception as error:  # whatever the two libraries raise where there is none, or a bad one
            raise CheckpointInvalid(f"{place} has no safety checker that can be used: {error}", source=place) from error
        return cls(checker, processor, device)

    @torch.inference_mode()
    def check(self, pictures: Sequence[np.ndarray]) -> Sequence[bool]:
        """Which of `pictures`, uint8 [height, width, 3] each, it objects to."""
        images = [Image.fromarray(picture) for picture in pictures]
        seen = self._processor(images, return_tensors="pt").pixel_values.to(self._device)
        # It would paint over the array that it is given: that is the operator's choice, not the checker's.
        _, found = self._checker(clip_input=seen, images=np.zeros((len(pictures), 1, 1, 3), dtype=np.float32))
        return [bool(one) for one in found]
