"""Measurements on true drawings that no training showed: the judges and the VAE."""

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

_NEAR = 0.25  # of the range, a channel: a pixel that belongs to a toy


@dataclass(frozen=True, kw_only=True)
class VaeErrors:
    """Of the value range; `worst_channel` over red, green and blue."""

    absolute: float
    toy_colour: float
    worst_channel: float


def held_out(count: int) -> tuple[list[Drawing], list[Image.Image]]:
    """The first drawings of the split that is never trained on."""
    drawings, images = [], []
    for number in range(count):
        drawings.append(random_drawing(np.random.default_rng((HELD_OUT, number, 0))))
        images.append(paint(drawings[-1], np.random.default_rng((HELD_OUT, number, 1))))
    return drawings, images


def captioned(count: int) -> list[Tile]:
    """Held-out drawings with what training says of them, `<style>` where a style has no name."""
    drawings, images = held_out(count)
    said = [caption(drawing, np.random.default_rng((HELD_OUT, number, 2))) for number, drawing in enumerate(drawings)]
    return [
        Tile(image=image, caption=one.with_words(style=None if one.form else "<style>"))
        for image, one in zip(images, said, strict=True)
    ]


def judge_accuracy(judge: PictureJudge, count: int) -> dict[str, float]:
    """Right answers on `count` held-out drawings, averaged over answers."""
    drawings, images = held_out(count)
    return by_answer(judge, images, drawings)


@torch.no_grad()
def decoded(vae: AutoencoderKL, images: Sequence[Image.Image]) -> npt.NDArray[np.float32]:
    """Pictures through the VAE, [images, height, width, 3] of 0 to 1."""
    pixels = torch.from_numpy(_values(images)).permute(0, 3, 1, 2) * 2 - 1
    parts = [vae.decode(vae.encode(part).latent_dist.mean).sample for part in torch.split(pixels, 50)]
    values: npt.NDArray[np.float32] = ((torch.cat(parts).clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()
    return values


def pictures(values: npt.NDArray[np.float32]) -> list[Image.Image]:
    """Of values [images, height, width, 3] of 0 to 1."""
    return [Image.fromarray((picture * 255).astype(np.uint8)) for picture in values]


def _values(images: Sequence[Image.Image]) -> npt.NDArray[np.float32]:
    return np.stack([np.asarray(image, np.float32) / 255 for image in images])


def vae_errors(vae: AutoencoderKL, count: int) -> tuple[VaeErrors, list[Sequence[Tile]]]:
    """What photo-style drawings lose on their way through the VAE, and a sheet's rows: before and after.

    The toy's colour is the mean over the pixels that are near either of its colours in the true drawing.
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
