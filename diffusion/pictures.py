"""Uploaded pictures: checked before they are decoded, then converted to upright RGB."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffusion.errors import PictureInvalid

_MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_SIDEWAYS = {5, 6, 7, 8}  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112


@dataclass(frozen=True, kw_only=True)
class PictureLimits:
    """The limits of an acceptable picture."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    min_side_px: int = 16


@dataclass(frozen=True, kw_only=True)
class PictureInfo:
    """Media type of a picture, and its width and height in pixels when upright."""

    media_type: str
    width: int
    height: int


def picture_info(data: bytes, limits: PictureLimits) -> PictureInfo:
    """The information in the header of `data`; no pixel is decoded. Raises PictureInvalid."""
    with _opened(data, limits) as image:
        width, height = image.size
        if image.getexif().get(_ORIENTATION) in _SIDEWAYS:
            width, height = height, width
        return PictureInfo(media_type=_MEDIA_TYPES[str(image.format)], width=width, height=height)


def read_picture(data: bytes, limits: PictureLimits) -> Image.Image:
    """The picture as upright 8-bit RGB: rotated by its EXIF orientation, transparency on white. Raises PictureInvalid,
    also for a truncated picture."""
    with _opened(data, limits) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("I;16", "I;16B", "I;16L", "I"):
            return Image.fromarray((np.asarray(upright, dtype=np.float64) / 257).round().astype(np.uint8)).convert(
                "RGB"
            )
        if upright.has_transparency_data:
            shown = upright.convert("RGBA")
            paper = Image.new("RGBA", shown.size, "white")
            return Image.alpha_composite(paper, shown).convert("RGB")
        return upright.convert("RGB")


def square(image: Image.Image, size_px: int) -> Image.Image:
    """The central square of an RGB picture, scaled to `size_px` by `size_px`."""
    return ImageOps.fit(image, (size_px, size_px), Image.Resampling.LANCZOS)


def to_png(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 [height, width, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def _opened(data: bytes, limits: PictureLimits) -> Iterator[Any]:
    if not data:
        raise PictureInvalid("the picture is empty", reason="PICTURE_EMPTY")
    if len(data) > limits.max_bytes:
        raise PictureInvalid(
            f"the picture has {len(data)} bytes; at most {limits.max_bytes} are allowed", reason="PICTURE_TOO_LARGE"
        )
    try:
        # Our own limit on pixels applies, so Pillow's warnings about size and metadata add nothing.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=list(_MEDIA_TYPES)) as image,
        ):
            _check(image, limits)
            yield image
    except PictureInvalid:
        raise
    except Image.DecompressionBombError:
        raise PictureInvalid(
            f"the picture has too many pixels; at most {limits.max_pixels} are allowed", reason="PICTURE_TOO_LARGE"
        ) from None
    except UnidentifiedImageError:
        raise PictureInvalid("the picture is not a PNG, JPEG or WebP file", reason="PICTURE_FORMAT") from None
    except Exception as error:  # Pillow's decoders raise many types for a damaged file
        raise PictureInvalid(f"the picture is damaged: {error}", reason="PICTURE_DAMAGED") from error


def _check(image: Image.Image, limits: PictureLimits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise PictureInvalid(
            f"the picture has {width} x {height} pixels; at most {limits.max_pixels} are allowed",
            reason="PICTURE_TOO_LARGE",
        )
    if min(width, height) < limits.min_side_px:
        raise PictureInvalid(
            f"the picture has {width} x {height} pixels; each side must have at least {limits.min_side_px}",
            reason="PICTURE_TOO_SMALL",
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise PictureInvalid(f"the picture is animated ({frames} frames); send one frame", reason="PICTURE_ANIMATED")
