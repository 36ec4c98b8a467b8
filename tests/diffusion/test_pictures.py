"""Invalid and unusual pictures that clients upload."""

import io
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from diffusion.errors import PictureInvalid
from diffusion.pictures import PictureLimits, picture_info, read_mask, read_picture, square

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
    """A PNG of a few kilobytes whose header claims a very large picture."""

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
def test_invalid_pictures_are_rejected_before_decoding(name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(PictureInvalid) as caught:
        picture_info(data, LIMITS)
    assert caught.value.reason == reason


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "HEIF", "AVIF"])
def test_truncated_picture_is_damaged(kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(PictureInvalid) as caught:
        read_picture(data[: len(data) * 2 // 3], LIMITS)
    assert caught.value.reason == "PICTURE_DAMAGED"


def test_corrupt_picture_is_damaged() -> None:
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
def test_every_mode_becomes_rgb(data: bytes, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    image = read_picture(data, LIMITS)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    for found, wanted in zip(colours(image), (left, right), strict=True):
        assert np.abs(found - wanted).max() < 16


def test_transparent_pixels_are_blended_with_white() -> None:
    image = read_picture(encoded(Image.new("RGBA", (40, 30), (0, 0, 0, 128))), LIMITS)
    assert abs(image.getpixel((5, 5))[0] - 127) <= 1  # type: ignore[index]


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise
    data = encoded(halves(), "JPEG", exif=exif, quality=95)
    assert (picture_info(data, LIMITS).width, picture_info(data, LIMITS).height) == (30, 40)
    image = read_picture(data, LIMITS)
    assert image.size == (30, 40)
    top = np.asarray(image, dtype=float)[:10].mean((0, 1))
    assert np.abs(top - RED).max() < 16


def many_chunks(count: int) -> bytes:
    """A sound PNG with `count` empty private chunks."""
    data = encoded(halves())
    empty = bytes(4) + b"prVt" + zlib.crc32(b"prVt").to_bytes(4, "big")
    return data[:33] + empty * count + data[33:]


def test_first_of_a_cameras_pictures_is_read() -> None:
    """MPO, as phones and cameras write it: a preview, a depth map or a gain map lies behind the picture."""
    data = encoded(halves(), "MPO", save_all=True, append_images=[Image.new("RGB", (10, 8))], quality=95)
    info = picture_info(data, LIMITS)
    assert (info.media_type, info.width, info.height) == ("image/jpeg", 40, 30)
    for found, wanted in zip(colours(read_picture(data, LIMITS)), (RED, BLUE), strict=True):
        assert np.abs(found - wanted).max() < 16


@pytest.mark.parametrize(("kind", "media_type"), [("HEIF", "image/heic"), ("AVIF", "image/avif")])
def test_formats_of_phones_are_read(kind: str, media_type: str) -> None:
    data = encoded(halves(), kind, quality=95)
    info = picture_info(data, LIMITS)
    assert (info.media_type, info.width, info.height) == (media_type, 40, 30)
    for found, wanted in zip(colours(read_picture(data, LIMITS)), (RED, BLUE), strict=True):
        assert np.abs(found - wanted).max() < 24


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_large_text_in_a_png_is_skipped(compress: bool, after: bool) -> None:
    """XMP and workflows may unpack to any size: they are not unpacked."""
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "x" * 3 * 2**20, zip=compress)
    text.add_text("workflow", "y" * 3 * 2**20, zip=compress)
    data = encoded(halves(), pnginfo=text)
    if after:  # the texts behind the pixels
        start, end = data.index(b"iTXt") - 4, data.index(b"IDAT") - 4
        data = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    limits = PictureLimits(max_bytes=20 * 2**20)
    assert picture_info(data, limits).width == 40
    np.testing.assert_array_equal(read_picture(data, limits), halves())


def test_a_colour_profile_that_is_a_bomb_is_skipped() -> None:
    data = encoded(halves(), icc_profile=bytes(50 * 2**20))
    np.testing.assert_array_equal(read_picture(data, LIMITS), halves())


def test_more_chunks_than_a_picture_needs_are_refused() -> None:
    limits = PictureLimits(max_bytes=20 * 2**20)
    assert picture_info(many_chunks(1_000), limits).width == 40
    with pytest.raises(PictureInvalid) as refused:
        picture_info(many_chunks(1_000_000), limits)
    assert refused.value.reason == "PICTURE_DAMAGED"


def test_exif_behind_the_pixels_of_a_png_turns_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(halves(), exif=exif)
    start, end = data.index(b"eXIf") - 4, data.index(b"IDAT") - 4
    behind = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    for one in (data, behind):
        info = picture_info(one, LIMITS)
        assert (info.width, info.height) == read_picture(one, LIMITS).size == (30, 40)


def swapped_profile() -> bytes:
    """sRGB's profile with red and blue exchanged and another name: a conversion that nobody overlooks."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    tags = {bytes(data[132 + 12 * n : 136 + 12 * n]): 132 + 12 * n for n in range(count)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    data[red + 4 : red + 12], data[blue + 4 : blue + 12] = data[blue + 4 : blue + 12], data[red + 4 : red + 12]
    return bytes(data).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_are_converted_by_their_profile(kind: str, mode: str) -> None:
    if (kind, mode) in {("JPEG", "RGBA"), ("JPEG", "P"), ("WEBP", "P")}:
        return
    image = halves().convert("P", palette=Image.Palette.ADAPTIVE) if mode == "P" else halves().convert(mode)
    how: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    data = encoded(image, kind, icc_profile=swapped_profile(), **how)
    found = colours(read_picture(data, LIMITS))
    for colour, wanted in zip(found, (RED[::-1], BLUE[::-1]), strict=True):
        assert np.abs(colour - wanted).max() < 16


def test_srgb_stays_as_it_is() -> None:
    data = encoded(halves(), icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    np.testing.assert_array_equal(read_picture(data, LIMITS), halves())


@pytest.mark.parametrize("profile", [b"no profile", bytes(200), swapped_profile()[:300]])
def test_a_broken_profile_is_ignored(profile: bytes) -> None:
    np.testing.assert_array_equal(read_picture(encoded(halves(), icc_profile=profile), LIMITS), halves())


def test_a_profile_of_another_colour_space_is_ignored() -> None:
    grey = Image.new("L", (40, 30), 77)
    data = encoded(grey, icc_profile=swapped_profile())
    assert read_picture(data, LIMITS).getpixel((3, 3)) == (77, 77, 77)


def test_a_mask_selects_by_luminance_times_alpha() -> None:
    selected = Image.new("L", (40, 30), 0)
    selected.paste(255, (20, 0, 40, 30))
    white = Image.new("L", (40, 30), 255)
    opaque = encoded(selected)
    brush = encoded(Image.merge("LA", (white, selected)))
    coloured = encoded(Image.merge("RGBA", (white, white, white, selected)))
    for data in (opaque, brush, coloured):
        np.testing.assert_array_equal(read_mask(data, LIMITS), selected)
    half = encoded(Image.merge("LA", (white, Image.new("L", (40, 30), 128))))
    assert read_mask(half, LIMITS).getpixel((5, 5)) == 128


def test_square_is_cropped_from_the_middle() -> None:
    image = square(halves(60, 20), 16)
    assert image.size == (16, 16)
    assert image.getpixel((0, 8)) == RED
    assert image.getpixel((15, 8)) == BLUE
