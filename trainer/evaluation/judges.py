"""Judge models, which embed pictures and (CLIP) sentences: frozen, in transformers' layout, safetensors only."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, CLIPModel, CLIPProcessor

from diffusion.errors import CheckpointInvalid
from diffusion.spec import BUNDLED

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


class _Frozen:
    """A frozen model and its input processor."""

    def __init__(self, model: Any, processor: Any) -> None:
        self._model = model.float().eval().requires_grad_(False)
        self._processor = processor


class Clip(_Frozen):
    """A CLIPModel and its processor: similarity of pictures to each other and to sentences."""

    @classmethod
    def load(cls, source: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Loads from a folder or a hub id. Raises OSError if there is no such model."""
        model = CLIPModel.from_pretrained(source, use_safetensors=True)
        return cls(model.to(device), CLIPProcessor.from_pretrained(source))

    @torch.no_grad()
    def look(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Embeds pictures as unit vectors [images, dims]; the mean product of two sets' vectors is CLIP-I."""
        inputs = self._processor.image_processor(images=list(images), return_tensors="pt")
        pixels = inputs["pixel_values"].to(self._model.device)
        states = self._model.vision_model(pixel_values=pixels).pooler_output
        return torch.nn.functional.normalize(self._model.visual_projection(states), dim=-1)

    @torch.no_grad()
    def read(self, sentences: Sequence[str]) -> torch.Tensor:
        """Embeds sentences as unit vectors [sentences, dims]; the products with pictures' vectors are CLIP-T."""
        inputs = self._processor.tokenizer(list(sentences), padding="max_length", truncation=True, return_tensors="pt")
        states = self._model.text_model(input_ids=inputs["input_ids"].to(self._model.device)).pooler_output
        return torch.nn.functional.normalize(self._model.text_projection(states), dim=-1)


class Dino(_Frozen):
    """A vision transformer whose first token's feature describes a picture (DINO: arXiv 2104.14294; as a measure of
    subject fidelity: arXiv 2208.12242, section 4.1)."""

    @classmethod
    def load(cls, source: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Loads from a folder or a hub id. Raises OSError if there is no such model."""
        model = AutoModel.from_pretrained(source, use_safetensors=True)
        return cls(model.to(device), AutoImageProcessor.from_pretrained(source))

    @torch.no_grad()
    def look(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Embeds pictures as unit vectors [images, dims]; the mean product of two sets' vectors is the DINO score."""
        inputs = self._processor(images=list(images), return_tensors="pt")
        states = self._model(pixel_values=inputs["pixel_values"].to(self._model.device)).last_hidden_state
        return torch.nn.functional.normalize(states[:, 0], dim=-1)


@dataclass(frozen=True, kw_only=True)
class Judges:
    """The judges of a trainer; an absent one is None. `names` identifies them, so that only comparable figures are
    compared: each a folder's name and the first digits of its weights' sha256."""

    clip: Clip | None = None
    dino: Dino | None = None
    names: Sequence[str] = ()


class JudgeLoader:
    """Loads the judges of one trainer when they are first needed. Used by the engine's thread."""

    def __init__(self, *, clip: Path | None = None, dino: Path | None = None) -> None:
        """`clip` and `dino` are folders. Raises CheckpointInvalid, which names the setting, if a folder has no model in
        safetensors."""
        for setting, folder in (("evaluation.clip", clip), ("evaluation.dino", dino)):
            missing = [] if folder is None else [name for name in (_CONFIG, _WEIGHTS) if not (folder / name).is_file()]
            if missing:
                raise CheckpointInvalid(
                    f"{setting}: {folder} is not a model in transformers' layout: it has no {missing[0]}"
                )
        self._clip, self._dino = clip, dino
        self._judges: Judges | None = None

    def load(self, device: torch.device) -> Judges:
        """The judges, on `device`. Raises the errors of transformers for unusable files."""
        if self._judges is None:
            self._judges = Judges(
                clip=None if self._clip is None else Clip.load(self._clip, device=device),
                dino=None if self._dino is None else Dino.load(self._dino, device=device),
                names=[
                    " ".join(dict.fromkeys((kind, folder.name, _digest(folder))))
                    for kind, folder in (("clip", self._clip), ("dino", self._dino))
                    if folder is not None
                ],
            )
        return self._judges


def clip_beside(source: str | None) -> Path | None:
    """The folder `clip` beside a checkpoint (a folder; None: the bundled one), or None if it is absent."""
    folder = (BUNDLED.parent if source is None else Path(source).expanduser()) / "clip"
    return folder if (folder / _WEIGHTS).is_file() else None


def _digest(folder: Path) -> str:
    with (folder / _WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
