"""Backgrounds: a plain wall, or one of six scenes."""

import numpy as np
from PIL import Image, ImageDraw

from miniature.shapes import shade
from miniature.world import Rgb, Scene

_FLAKES = 26
_STARS = 40
_PLANKS = 4


def backdrop(rng: np.random.Generator, size: int, scene: Scene | None, wall: Rgb) -> Image.Image:
    """A square of `size` pixels. The generator decides the positions of the horizon, flakes, stars and the moon."""
    image = Image.new("RGB", (size, size))
    horizon = size * rng.uniform(0.5, 0.66)
    if scene is None:
        _gradient(image, shade(wall, 1.05), shade(wall, 0.88), 0, size)
    elif scene == "beach":
        _gradient(image, (120, 190, 240), (190, 225, 245), 0, horizon * 0.75)
        _gradient(image, (40, 120, 190), (70, 160, 205), horizon * 0.75, horizon)
        _gradient(image, (240, 220, 165), (225, 195, 135), horizon, size)
    elif scene == "snow":
        _gradient(image, (150, 170, 200), (205, 215, 230), 0, horizon)
        _gradient(image, (245, 248, 252), (225, 232, 242), horizon, size)
        for _ in range(_FLAKES):
            _dot(image, rng.uniform(0, size), rng.uniform(0, size), size * 0.012, (255, 255, 255))
    elif scene == "grass":
        _gradient(image, (135, 200, 245), (205, 232, 245), 0, horizon)
        _gradient(image, (105, 180, 70), (60, 130, 45), horizon, size)
    elif scene == "table":
        _gradient(image, (225, 215, 200), (205, 195, 180), 0, horizon)
        _gradient(image, (165, 110, 65), (125, 80, 45), horizon, size)
        for plank in range(_PLANKS):
            y = horizon + (size - horizon) * (plank + 0.5) / _PLANKS
            ImageDraw.Draw(image).line([(0, y), (size, y)], fill=(110, 70, 38), width=max(1, size // 128))
    elif scene == "space":
        _gradient(image, (12, 10, 35), (35, 15, 60), 0, size)
        for _ in range(_STARS):
            x, y = rng.uniform(0, size), rng.uniform(0, size)
            _dot(image, x, y, size * rng.uniform(0.004, 0.012), (240, 240, 255))
    else:
        _gradient(image, (15, 25, 60), (50, 60, 110), 0, horizon)
        _gradient(image, (30, 45, 40), (18, 28, 26), horizon, size)
        _dot(image, size * rng.uniform(0.1, 0.9), size * 0.14, size * 0.08, (250, 245, 210))
    return image


def _gradient(image: Image.Image, above: Rgb, below: Rgb, top: float, bottom: float) -> None:
    """A vertical gradient between two colours over the rows `top` to `bottom`."""
    pen = ImageDraw.Draw(image)
    for y in range(int(top), int(bottom)):
        share = (y - top) / max(1, bottom - top)
        red, green, blue = (int(a + (b - a) * share) for a, b in zip(above, below, strict=True))
        pen.line([(0, y), (image.width, y)], fill=(red, green, blue))


def _dot(image: Image.Image, x: float, y: float, radius: float, colour: Rgb) -> None:
    ImageDraw.Draw(image).ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
