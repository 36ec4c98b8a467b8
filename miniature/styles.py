"""The five styles: what is done to the finished scene while it is brought to the final size."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from miniature.world import Style

_LANCZOS = Image.Resampling.LANCZOS
_Floats = npt.NDArray[np.float32]


def stylise(rng: np.random.Generator, image: Image.Image, style: Style, size: int) -> Image.Image:
    """The image in the style, RGB, `size` pixels square. Only van gogh's strokes depend on the generator."""
    if style == "photo":
        return image.resize((size, size), _LANCZOS)
    if style == "sketch":
        return _sketch(image, size)
    if style == "pixel art":
        coarse = image.resize((16, 16), Image.Resampling.BOX).quantize(12).convert("RGB")
        return coarse.resize((size, size), Image.Resampling.NEAREST)
    if style == "watercolor":
        soft = image.resize((size, size), _LANCZOS).filter(ImageFilter.MedianFilter(5))
        return _image(_floats(soft.filter(ImageFilter.GaussianBlur(0.8))) * 0.6 + 255 * 0.4)
    return _van_gogh(_floats(image.resize((size, size), _LANCZOS)), phase=rng.uniform(0, 6.28))


def _sketch(image: Image.Image, size: int) -> Image.Image:
    """Dark where the brightness changes, on paper."""
    grey = image.convert("L").resize((size * 2, size * 2), _LANCZOS).filter(ImageFilter.GaussianBlur(0.8))
    light = _floats(grey)
    across = np.abs(np.diff(light, axis=1, prepend=light[:, :1]))
    down = np.abs(np.diff(light, axis=0, prepend=light[:1]))
    drawn = np.clip(248 - 5.5 * (across + down) - 0.12 * (255 - light), 20, 255).astype(np.uint8)
    return Image.fromarray(drawn).convert("RGB").resize((size, size), _LANCZOS)


def _van_gogh(pixels: _Floats, *, phase: float) -> Image.Image:
    """Strokes along a swirling field that shift and tint what lies under them."""
    size = len(pixels)
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32)
    angle = (np.sin(xs / 9 + phase) + np.cos(ys / 8 - phase)) * 1.7
    stroke = np.sin((xs * np.sin(angle) - ys * np.cos(angle)) * 0.85 + phase)
    shift_x, shift_y = np.cos(angle) * 3.2 * stroke * 0.8, np.sin(angle) * 3.2 * stroke * 0.8
    columns = np.clip(np.round(xs + shift_x), 0, size - 1).astype(int)
    rows = np.clip(np.round(ys + shift_y), 0, size - 1).astype(int)
    painted = pixels[rows, columns] * (1 + 0.22 * stroke[..., None])
    mean = painted.mean(-1, keepdims=True)
    painted = (mean + (painted - mean) * 1.3) * 0.84
    painted = painted + np.array([30, 60, 150]) * 0.12 * (stroke[..., None] < 0)
    painted = painted + np.array([240, 200, 40]) * 0.12 * (stroke[..., None] > 0)
    return _image(painted).filter(ImageFilter.GaussianBlur(0.5))


def _floats(image: Image.Image) -> _Floats:
    return np.asarray(image, dtype=np.float32)


def _image(pixels: npt.NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
