"""Colours as their profile says, converted to sRGB, the space that diffusion models are trained in."""

import io

import structlog
from PIL import Image, ImageCms

_MAX_PROFILE_BYTES = 4 * 2**20
# Pillow's modes, and the colour space that a profile for each must be of.
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
_logger = structlog.get_logger(__name__)


def to_srgb(image: Image.Image) -> Image.Image:
    """`image` (RGB, RGBA, L, LA, CMYK, palette) converted by its ICC profile; unchanged without one, with one that is
    sRGB, and with one that is broken or of another colour space, which is logged. Transparency is kept."""
    profile = image.info.get("icc_profile")
    if not profile or len(profile) > _MAX_PROFILE_BYTES:
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
            raise ImageCms.PyCMSError(f"it is for {space}, and the picture is {colours.mode}")
        converted = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        _logger.warning("a picture's colour profile is ignored", error=str(error)[:200])
        return image
    if converted is None:  # only when converted in place
        return image
    if alpha is not None:
        converted.putalpha(alpha)
    return converted
