"""The picture that a request starts from, and its mask: checked before they are decoded, then fitted to size."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageOps
from pseudoword.generation.v1 import resources_pb2

from diffusion.denoise import DecodedInitImage
from diffusion.errors import PictureInvalid
from diffusion.pictures import PictureInfo, PictureLimits, picture_info, read_mask, read_picture
from rpc.errors import InvalidArgument
from rpc.validate import Violations

_LIMITS = PictureLimits(max_bytes=12 * 2**20)


@dataclass(frozen=True, kw_only=True)
class InitImage:
    """The bytes of a start picture and of its mask (empty: none). `strength` in (0, 1] is the fraction of the schedule
    that is rerun."""

    picture: bytes
    mask: bytes
    strength: float

    @property
    def digests(self) -> tuple[str, str]:
        """The sha256 (hex) of picture and mask; empty for an absent mask."""
        return hashlib.sha256(self.picture).hexdigest(), hashlib.sha256(self.mask).hexdigest() if self.mask else ""

    def decoded(self, width: int, height: int) -> DecodedInitImage:
        """Decodes both and fits them to the result's size: cropped around the middle, never stretched. Blocks while it
        decodes. Raises InvalidArgument."""
        size = (width, height)
        picture = _read("settings.start_picture", self.picture, read_picture)
        mask = _read("settings.mask", self.mask, read_mask) if self.mask else None
        return DecodedInitImage(
            picture=ImageOps.fit(picture, size, Image.Resampling.LANCZOS),
            mask=None if mask is None else ImageOps.fit(mask, size, Image.Resampling.LANCZOS),
            strength=self.strength,
        )


def validate_init_image(
    settings: resources_pb2.PictureSettings, default_strength: float, wrong: Violations
) -> tuple[InitImage | None, PictureInfo | None]:
    """The init image of `settings` and its picture's header; None without one. Adds violations to `wrong`."""
    if not settings.start_picture:
        for field, is_set in (("strength", settings.HasField("strength")), ("mask", bool(settings.mask))):
            if is_set:
                wrong.add(f"settings.{field}", "needs start_picture")
        return None, None
    strength = settings.strength if settings.HasField("strength") else default_strength
    if not 0 < strength <= 1:
        wrong.add("settings.strength", f"is {strength:g}; it must be above 0 and at most 1")
    info = _info("settings.start_picture", settings.start_picture, wrong)
    if settings.mask:
        mask = _info("settings.mask", settings.mask, wrong)
        if info and mask and (info.width, info.height) != (mask.width, mask.height):
            wrong.add(
                "settings.mask",
                f"has {mask.width} x {mask.height} pixels; it must have start_picture's {info.width} x {info.height}",
            )
    return InitImage(picture=settings.start_picture, mask=settings.mask, strength=strength), info


def _info(field: str, data: bytes, wrong: Violations) -> PictureInfo | None:
    try:
        return picture_info(data, _LIMITS)
    except PictureInvalid as error:
        wrong.add(field, error.message)
        return None


def _read(field: str, data: bytes, decode: Callable[[bytes, PictureLimits], Image.Image]) -> Image.Image:
    try:
        return decode(data, _LIMITS)
    except PictureInvalid as error:
        raise InvalidArgument(error.message, reason=error.reason, violations=[(field, error.message)]) from None
