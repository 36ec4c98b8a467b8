"""Measurements of the judges and the VAE on held-out drawings, which are in no training set."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from PIL import Image
from pseudoword.sheet import Tile

from benchmarks.miniature.scores import PictureJudge, by_answer
from miniature.captions import caption
from miniature.paint import paint
from miniature.training.drawings import HELD_OUT
from miniature.world import Drawing, random_drawing

_NEAR = 0.25  # maximum difference in each channel between a pixel of a toy and the toy's colour; the range is 1


@dataclass(frozen=True, kw_only=True)
class VaeErrors:
    """Mean errors, as fractions of the value range; `worst_channel` is the largest of red, green and blue."""

    absolute: float
    toy_colour: float
    worst_channel: float


def held_out(count: int) -> tuple[list[Drawing], list[Image.Image]]:
    """The first drawings of the held-out split."""
    drawings, images = [], []
    for number in range(count):
        drawings.append(random_drawing(np.random.default_rng((HELD_OUT, number, 0))))
        images.append(paint(drawings[-1], np.random.default_rng((HELD_OUT, number, 1))))
    return drawings, images


def captioned(count: int) -> list[Tile]:
    """Held-out drawings with their captions; `<style>` stands for a style without a name."""
    drawings, images = held_out(count)
    captions = [
        caption(drawing, np.random.default_rng((HELD_OUT, number, 2))) for number, drawing in enumerate(drawings)
    ]
    return [
        Tile(image=image, caption=one.with_words(style=None if one.form else "<style>"))
        for image, one in zip(images, captions, strict=True)
    ]


def judge_accuracy(judge: PictureJudge, count: int) -> dict[str, float]:
    """The accuracy for each attribute on `count` held-out drawings, averaged over answers."""
    drawings, images = held_out(count)
    return by_answer(judge, images, drawings)


@torch.no_grad()
def decoded(vae: AutoencoderKL, images: Sequence[Image.Image]) -> npt.NDArray[np.float32]:
    """Pictures, encoded and decoded by the VAE: [images, height, width, 3] in [0, 1]."""
    pixels = torch.from_numpy(_values(images)).permute(0, 3, 1, 2) * 2 - 1
    parts = [vae.decode(vae.encode(part).latent_dist.mean).sample for part in torch.split(pixels, 50)]
    values: npt.NDArray[np.float32] = ((torch.cat(parts).clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()
    return values


def pictures(values: npt.NDArray[np.float32]) -> list[Image.Image]:
    """The pictures of values [images, height, width, 3] in [0, 1]."""
    return [Image.fromarray((picture * 255).astype(np.uint8)) for picture in values]


def _values(images: Sequence[Image.Image]) -> npt.NDArray[np.float32]:
    return np.stack([np.asarray(image, np.float32) / 255 for image in images])


def vae_errors(vae: AutoencoderKL, count: int) -> tuple[VaeErrors, list[Sequence[Tile]]]:
    """The VAE's errors on photos, and the rows of a sheet: before and after.

    A toy's colour is the mean over the pixels that are near one of its colours in the original drawing.
    """
    drawings, images = held_out(count)
    photos = [place for place, drawing in enumerate(drawings) if drawing.style.name == "photo"]
    painted = [images[place] for place in photos]
    true, again = _values(painted), decoded(vae, painted)
    colours = []
    for place, before, after in zip(photos, true, again, strict=True):
        toy = drawings[place].toy
        near = np.zeros(before.shape[:2], bool)
        for colour in (toy.colour, toy.second):
            near |= np.abs(before - np.array(colour.rgb, np.float32) / 255).max(axis=-1) < _NEAR
        if near.sum() >= 20:
            colours.append(np.abs(before[near].mean(axis=0) - after[near].mean(axis=0)))
    errors = np.array(colours).mean(axis=0)
    rows = [
        [Tile(image=image, caption=caption) for image in pictures(stack[:8])]
        for stack, caption in ((true, "drawn"), (again, "through the VAE"))
    ]
    return (
        VaeErrors(
            absolute=float(np.abs(again - true).mean()),
            toy_colour=float(errors.mean()),
            worst_channel=float(errors.max()),
        ),
        list(rows),
    )
