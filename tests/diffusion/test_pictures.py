"""Every kind of bad or odd picture that people upload."""

import io
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion.errors import PictureInvalid
from diffusion.pictures import PictureLimits, picture_info, read_picture, square

LIMITS = PictureLimits(max_bytes=200_000, max_pixels=250_000)
RED, BLUE = (200, 30, 40), (20, 60, 220)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def halves(width: int = 40, height: int = 30) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def huge_png(width: int, height: int) -> bytes:
    """A few kilobytes that say they are a very large picture."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


ANIMATED = encoded(halves(), "WEBP", save_all=True, append_images=[Image.new("RGB", (40, 30))])
BAD = {
    "nothing": (b"", "PICTURE_EMPTY"),
    "text": (b"hello" * 100, "PICTURE_FORMAT"),
    "gif": (encoded(halves(), "GIF"), "PICTURE_FORMAT"),
    "tiff": (encoded(halves(), "TIFF"), "PICTURE_FORMAT"),
    "bytes": (bytes(LIMITS.max_bytes + 1), "PICTURE_TOO_LARGE"),
    "pixels": (huge_png(1000, 1000), "PICTURE_TOO_LARGE"),
    "bomb": (huge_png(50_000, 50_000), "PICTURE_TOO_LARGE"),
    "tiny": (encoded(halves(8, 8)), "PICTURE_TOO_SMALL"),
    "animated webp": (ANIMATED, "PICTURE_ANIMATED"),
    "animated png": (
        encoded(halves(), "PNG", save_all=True, append_images=[Image.new("RGB", (40, 30))]),
        "PICTURE_ANIMATED",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_before_decoding(name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(PictureInvalid) as caught:
        picture_info(data, LIMITS)
    assert caught.value.reason == reason


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_cut_off(kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(PictureInvalid) as caught:
        read_picture(data[: len(data) * 2 // 3], LIMITS)
    assert caught.value.reason == "PICTURE_DAMAGED"


def test_corrupt() -> None:
    data = bytearray(encoded(halves()))
    data[60:80] = bytes(20)
    with pytest.raises(PictureInvalid) as caught:
        read_picture(bytes(data), LIMITS)
    assert caught.value.reason == "PICTURE_DAMAGED"


def colours(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Mean colour of the left and of the right quarter."""
    pixels = np.asarray(image, dtype=float)
    quarter = pixels.shape[1] // 4
    return pixels[:, :quarter].mean((0, 1)), pixels[:, -quarter:].mean((0, 1))


@pytest.mark.parametrize(
    ("data", "left", "right"),
    [
        (encoded(halves()), RED, BLUE),
        (encoded(halves(), "JPEG", quality=95), RED, BLUE),
        (encoded(halves(), "WEBP", lossless=True), RED, BLUE),
        (encoded(halves().convert("CMYK"), "JPEG", quality=95), RED, BLUE),
        (encoded(halves().convert("P", palette=Image.Palette.ADAPTIVE)), RED, BLUE),
        (encoded(Image.fromarray(np.full((30, 40), 51400, dtype=np.uint16))), (200,) * 3, (200,) * 3),
        (encoded(Image.new("LA", (40, 30), (0, 0))), (255,) * 3, (255,) * 3),
        (encoded(Image.new("1", (40, 30), 1)), (255,) * 3, (255,) * 3),
    ],
    ids=["png", "jpeg", "webp", "cmyk", "palette", "16 bits", "transparent", "one bit"],
)
def test_becomes_upright_rgb(data: bytes, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    image = read_picture(data, LIMITS)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    for found, wanted in zip(colours(image), (left, right), strict=True):
        assert np.abs(found - wanted).max() < 16


def test_half_transparent_is_laid_on_white() -> None:
    image = read_picture(encoded(Image.new("RGBA", (40, 30), (0, 0, 0, 128))), LIMITS)
    assert abs(image.getpixel((5, 5))[0] - 127) <= 1  # type: ignore[index]


def test_exif_turns_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise
    data = encoded(halves(), "JPEG", exif=exif, quality=95)
    assert (picture_info(data, LIMITS).width, picture_info(data, LIMITS).height) == (30, 40)
    image = read_picture(data, LIMITS)
    assert image.size == (30, 40)
    top = np.asarray(image, dtype=float)[:10].mean((0, 1))
    assert np.abs(top - RED).max() < 16


def test_square_is_the_middle() -> None:
    image = square(halves(60, 20), 16)
    assert image.size == (16, 16)
    assert image.getpixel((0, 8)) == RED
    assert image.getpixel((15, 8)) == BLUE
