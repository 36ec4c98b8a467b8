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
        """Load the safety checker of a folder or a hub id; None: the bundled miniature. Raises CheckpointInvalid when
        there is none.

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
        except Exception as error:  # the two libraries raise many types for a missing or bad checker
            raise CheckpointInvalid(
                f"{place} has no safety checker that can be loaded: {error}", source=place
            ) from error
        return cls(checker, processor, device)

    @torch.inference_mode()
    def check(self, pictures: Sequence[np.ndarray]) -> Sequence[bool]:
        """For each of `pictures`, uint8 [height, width, 3], whether the checker flags it."""
        images = [Image.fromarray(picture) for picture in pictures]
        seen = self._processor(images, return_tensors="pt").pixel_values.to(self._device)
        # The checker blackens flagged pictures in the array that it gets. It gets a dummy array, because the setting of
        # the operator decides what happens to flagged pictures.
        _, found = self._checker(clip_input=seen, images=np.zeros((len(pictures), 1, 1, 3), dtype=np.float32))
        return [bool(one) for one in found]
