"""Converts pictures by their colour profile to sRGB, the colour space that diffusion models are trained in."""

import io

import structlog
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4 * 2**20
# By Pillow's mode: the colour space that a profile must have.
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
_logger = structlog.get_logger(__name__)


def to_srgb(image: Image.Image) -> Image.Image:
    """`image` (RGB, RGBA, L, LA, CMYK, palette) converted by its ICC profile. Unchanged without a profile and with an
    sRGB profile; a damaged profile, or one for another colour space, is logged and ignored. Transparency is kept."""
    profile = image.info.get("icc_profile")
    if not profile or len(profile) > MAX_PROFILE_BYTES:
        return image
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    colours = image.convert({"RGBA": "RGB", "LA": "L"}[image.mode]) if alpha is not None else image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if "sRGB" in (source.profile.profile_description or ""):
            return image
        if space != _SPACES.get(colours.mode):
            raise ImageCms.PyCMSError(f"the profile is for {space}, and the picture is {colours.mode}")
        converted = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        _logger.warning("colour profile ignored", error=str(error)[:200])
        return image
    if converted is None:  # for mypy: only a conversion in place returns None
        return image
    if alpha is not None:
        converted.putalpha(alpha)
    return converted
