"""Uploaded pictures: checked before they are decoded, then converted to upright sRGB."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from diffusion import png_chunks
from diffusion.colour import to_srgb
from diffusion.errors import PictureInvalid

# By Pillow's format. MPO is a JPEG with further pictures after the first: a preview, a depth map, a gain map.
_MEDIA_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "HEIF": "image/heic",
}
# The formats that Pillow may open; an MPO is opened as a JPEG.
_FORMATS = [name for name in _MEDIA_TYPES if name != "MPO"]
# The first bytes of files of these formats.
_SIGNATURES = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP|....ftyp(avi[fs]|hei[cxms]|hev[cx]|mif1)", re.DOTALL
)
# Formats in which further pictures belong to the first one and are not an animation.
_STILL = {"MPO", "HEIF"}
_SIDEWAYS = {5, 6, 7, 8}  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112

pillow_heif.register_heif_opener(thumbnails=False)


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
        if _orientation(image) in _SIDEWAYS:
            width, height = height, width
        return PictureInfo(media_type=_MEDIA_TYPES[str(image.format)], width=width, height=height)


def read_picture(data: bytes, limits: PictureLimits) -> Image.Image:
    """The picture as upright 8-bit sRGB: rotated by its EXIF orientation, converted by its colour profile, transparency
    on white. Of several pictures in a file, the first. Raises PictureInvalid, also for a truncated file."""
    with _opened(data, limits) as image:
        upright = to_srgb(_upright(image))
        if upright.has_transparency_data:
            shown = upright.convert("RGBA")
            paper = Image.new("RGBA", shown.size, "white")
            return Image.alpha_composite(paper, shown).convert("RGB")
        return upright.convert("RGB")


def read_mask(data: bytes, limits: PictureLimits) -> Image.Image:
    """A mask as upright grey levels (mode L): its luminance times its alpha, so that white, opaque areas are selected
    and transparent ones are not. Raises PictureInvalid."""
    with _opened(data, limits) as image:
        upright = _upright(image)
        if not upright.has_transparency_data:
            return upright.convert("L")
        shown = upright.convert("RGBA")
        return ImageChops.multiply(shown.convert("L"), shown.getchannel("A"))


def square(image: Image.Image, size_px: int) -> Image.Image:
    """The central square of a picture, scaled to `size_px` by `size_px`."""
    return ImageOps.fit(image, (size_px, size_px), Image.Resampling.LANCZOS)


def to_png(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 [height, width, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _upright(image: Any) -> Image.Image:
    """The decoded picture, rotated by its EXIF orientation, with 8 bits per channel."""
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("I;16", "I;16B", "I;16L", "I"):
        grey = Image.fromarray((np.asarray(upright, dtype=np.float64) / 257).round().astype(np.uint8))
        grey.info = upright.info
        return grey
    return upright


def _orientation(image: Any) -> int | None:
    if image.format == "PNG":
        # Pillow's getexif() would decode the pixels of a PNG whose EXIF does not come before them.
        exif = Image.Exif()
        exif.load(image.info.get("exif", b""))
        return exif.get(_ORIENTATION)
    found: int | None = image.getexif().get(_ORIENTATION)
    return found


@contextmanager
def _opened(data: bytes, limits: PictureLimits) -> Iterator[Any]:
    if not data:
        raise PictureInvalid("the picture is empty", reason="PICTURE_EMPTY")
    if len(data) > limits.max_bytes:
        raise PictureInvalid(
            f"the picture has {len(data)} bytes; at most {limits.max_bytes} are allowed", reason="PICTURE_TOO_LARGE"
        )
    if data.startswith(png_chunks.SIGNATURE):
        data = png_chunks.without_metadata(data)
    try:
        # Our own limits apply, so Pillow's warnings about size and metadata add nothing.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=_FORMATS) as image,
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
        if _SIGNATURES.match(data):
            raise PictureInvalid(
                "the picture is damaged: its header cannot be read", reason="PICTURE_DAMAGED"
            ) from None
        raise PictureInvalid(
            "the file is not a PNG, JPEG, WebP, HEIC or AVIF picture: convert it to one of these",
            reason="PICTURE_FORMAT",
        ) from None
    except Exception as error:  # Pillow's decoders raise many kinds of errors for a broken file
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
    if frames > 1 and image.format not in _STILL:
        raise PictureInvalid(f"the picture is animated ({frames} frames); send one frame", reason="PICTURE_ANIMATED")
