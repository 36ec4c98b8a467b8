"""Removes metadata chunks from a PNG file (RFC 2083) before Pillow decompresses them, which bounds the cost."""

import zlib

from diffusion.colour import MAX_PROFILE_BYTES
from diffusion.errors import PictureInvalid

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# For comparison: a picture of 20 MiB in the usual chunks of 8 KiB has 2,560 chunks.
_MAX_CHUNKS = 50_000
_TEXT = {b"tEXt", b"zTXt", b"iTXt"}
_EXIF = b"eXIf"
_PROFILE = b"iCCP"
_HEADER = b"IHDR"


def without_metadata(data: bytes) -> bytes:
    """`data` without its texts (XMP, workflows, comments), and without a colour profile of 4 MiB or more when
    decompressed.

    EXIF is moved to the front, so that its orientation can be read without decoding a pixel. Raises PictureInvalid for
    too many chunks. Other faults of the file are left to its decoder.
    """
    front, rest = [SIGNATURE], []
    at, count = len(SIGNATURE), 0
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        count += 1
        if count > _MAX_CHUNKS:
            raise PictureInvalid(
                f"the picture has more than {_MAX_CHUNKS} chunks: save it again in an image editor",
                reason="PICTURE_DAMAGED",
            )
        if kind in (_HEADER, _EXIF):
            front.append(data[at:end])
        elif kind not in _TEXT and not (kind == _PROFILE and _is_large(data[at + 8 : end - 4])):
            rest.append(data[at:end])
        at = end
    return b"".join([*front, *rest, data[at:]])


def _is_large(profile: bytes) -> bool:
    """Whether the content of an iCCP chunk (a name, 0, a method, compressed bytes) is too large when decompressed."""
    packed = profile[profile.find(b"\0") + 2 :]
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(packed, MAX_PROFILE_BYTES)
    except zlib.error:
        return True  # a damaged profile is unusable: drop it as well
    return len(unpacked) == MAX_PROFILE_BYTES and not unpacker.eof
