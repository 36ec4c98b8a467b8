"""Renders a finished scene in a style, at its final size."""

import colorsys

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from miniature.style import Style

_LANCZOS = Image.Resampling.LANCZOS
_Floats = npt.NDArray[np.float32]


def stylise(rng: np.random.Generator, image: Image.Image, style: Style, size: int) -> Image.Image:
    """The image in the style, RGB, `size` pixels square. The generator is used for strokes only."""
    pixels = _floats(image.resize((size, size), _LANCZOS))
    if style.stroke or style.palette:
        pixels = _paint(pixels, style, phase=rng.uniform(0, 6.28) if style.stroke else 0)
    if style.wash:
        pixels = _wash(pixels, style.wash)
    if style.line or style.colour < 1:
        pixels = _draw(pixels, image, style, size)
    return _blocks(_image(pixels), style.block)


def _paint(pixels: _Floats, style: Style, *, phase: float) -> _Floats:
    """Shifts and tints the pixels along strokes: troughs like shadows, crests like lights.

    Without strokes, pixels darker than medium grey are tinted like shadows, all others like lights.
    """
    size = len(pixels)
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32)
    straight = np.full_like(xs, style.direction)
    angle = (np.sin(xs / 9 + phase) + np.cos(ys / 8 - phase)) * 1.7 if style.swirl > 0.5 else straight
    wave = style.stroke * np.sin((xs * np.sin(angle) - ys * np.cos(angle)) * style.fineness + phase)
    columns = np.clip(np.round(xs + np.cos(angle) * 2.56 * wave), 0, size - 1).astype(int)
    rows = np.clip(np.round(ys + np.sin(angle) * 2.56 * wave), 0, size - 1).astype(int)
    painted = pixels[rows, columns] * (1 + 0.22 * wave[..., None])
    mean = painted.mean(-1, keepdims=True)
    strength = min(1.0, style.palette)
    painted = (mean + (painted - mean) * (1 + 0.3 * strength)) * (1 - 0.16 * strength)
    shadow = (wave if style.stroke else mean[..., 0] - 128) < 0
    tint = np.where(shadow[..., None], _rgb(style.hue, 0.8, 0.6), _rgb(style.hue + 183, 0.83, 0.94))
    painted = painted * (1 - 0.1 * (style.palette - strength)) + tint * 0.12 * style.palette
    return _floats(_image(painted).filter(ImageFilter.GaussianBlur(0.5))) if style.stroke else painted


def _wash(pixels: _Floats, wash: float) -> _Floats:
    soft = _image(pixels).filter(ImageFilter.MedianFilter(5)).filter(ImageFilter.GaussianBlur(0.8))
    return _floats(soft) * (1 - 0.4 * wash) + 255 * 0.4 * wash


def _draw(pixels: _Floats, image: Image.Image, style: Style, size: int) -> _Floats:
    """Lines at changes of the scene's brightness, on paper that the colours cover partly."""
    grey = image.convert("L").resize((size * 2, size * 2), _LANCZOS).filter(ImageFilter.GaussianBlur(0.8))
    light = _floats(grey)
    across = np.abs(np.diff(light, axis=1, prepend=light[:, :1]))
    down = np.abs(np.diff(light, axis=0, prepend=light[:1]))
    tinted = np.asarray(_image(pixels).resize((size * 2, size * 2), _LANCZOS), np.float32)
    paper = (248 - 0.12 * (255 - light))[..., None]
    covered = paper * (1 - style.colour) + tinted * style.colour
    drawn = np.clip(covered - (5.5 * style.line * (across + down))[..., None], 20, 255)
    return _floats(_image(drawn).resize((size, size), _LANCZOS))


def _blocks(image: Image.Image, block: int) -> Image.Image:
    if block == 1:
        return image
    coarse = image.resize((image.width // block, image.height // block), Image.Resampling.BOX)
    return coarse.quantize(12).convert("RGB").resize(image.size, Image.Resampling.NEAREST)


def _rgb(hue: float, saturation: float, value: float) -> _Floats:
    return np.array(colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value), np.float32) * 255


def _floats(image: Image.Image) -> _Floats:
    return np.asarray(image, dtype=np.float32)


def _image(pixels: npt.NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
