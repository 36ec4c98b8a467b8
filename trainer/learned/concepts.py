"""Reads the training data of a learned start: concepts in folders, with pictures and optionally words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from diffusion.checkpoint import BaseModel
from diffusion.errors import PictureInvalid
from diffusion.pictures import PictureLimits, read_picture
from storage.errors import TensorsInvalid
from storage.tensors import read_tensors
from trainer.training.latents import Latents, encode_pictures

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_MAX_PICTURES = 32  # of a concept; the limit of a job


class FolderInvalid(ValueError):
    """The folder is unusable as training data; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A concept's latents; `vector` [dims] is a word that was learned for it before, if there is one."""

    latents: Latents
    vector: torch.Tensor | None = None


def read_concepts(folder: Path, model: BaseModel, limits: PictureLimits) -> Iterator[Concept]:
    """The concepts of a folder: each subfolder with pictures, and each picture directly in the folder. A subfolder may
    contain a word that was learned before, as diffusers writes it (one safetensors file, one vector). Raises
    FolderInvalid."""
    if not folder.is_dir():
        raise FolderInvalid(f"there is no folder {folder}")
    places: list[Sequence[Path]] = [[file] for file in sorted(folder.iterdir()) if _is_picture(file)]
    words: list[Path | None] = [None] * len(places)
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        own = [file for file in sorted(inner.iterdir()) if _is_picture(file)]
        if own:
            places.append(own[:_MAX_PICTURES])
            words.append(next(iter(sorted(inner.glob("*.safetensors"))), None))
    if not places:
        raise FolderInvalid(f"{folder} and its subfolders contain no pictures ({', '.join(_PICTURES)})")
    for files, word in zip(places, words, strict=True):
        pictures = [_picture(file, limits) for file in files]
        latents = encode_pictures(model, pictures, [], flips=False)
        yield Concept(latents=latents, vector=None if word is None else _vector(word, model.spec.encoders[0].dims))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _PICTURES and path.is_file()


def _picture(file: Path, limits: PictureLimits) -> Image.Image:
    try:
        return read_picture(file.read_bytes(), limits)
    except PictureInvalid as error:
        raise FolderInvalid(f"{file}: {error.message}") from error


def _vector(file: Path, dims: int) -> torch.Tensor:
    try:
        (vectors,) = read_tensors(file.read_bytes()).values()
    except (TensorsInvalid, ValueError) as error:
        raise FolderInvalid(f"{file} is not a word with vectors for one encoder: {error}") from error
    if vectors.shape[-1] != dims:
        raise FolderInvalid(f"{file} has vectors of {vectors.shape[-1]} dimensions; the model's have {dims}")
    return torch.from_numpy(vectors).reshape(-1, dims).mean(dim=0)
