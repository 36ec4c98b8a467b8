"""What a learned start is made from: concepts in folders, their pictures and, where there are some, their words."""

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
_MAX_PICTURES = 32  # of a concept; a job has no more


class FolderInvalid(ValueError):
    """A folder that no start can be learned from; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A concept's pictures as the model sees them; `vector` [dims], where a word of it was learned before."""

    latents: Latents
    vector: torch.Tensor | None = None


def read_concepts(folder: Path, model: BaseModel, limits: PictureLimits) -> Iterator[Concept]:
    """The concepts of a folder: each subfolder is one, and each picture that lies in none. A subfolder may hold a word
    learned before, as diffusers writes it (one safetensors file, one vector). Raises FolderInvalid."""
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
        raise FolderInvalid(f"{folder} has no pictures ({', '.join(_PICTURES)}), and none of its folders has")
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
        raise FolderInvalid(f"{file} is no word with vectors for one encoder: {error}") from error
    if vectors.shape[-1] != dims:
        raise FolderInvalid(f"{file} has vectors of {vectors.shape[-1]} dimensions; the model's have {dims}")
    return torch.from_numpy(vectors).reshape(-1, dims).mean(dim=0)
