"""Writes finished pictures as files. A file holds pixels and record only, so equal pictures give equal files."""

import hashlib
import io

import numpy as np
from google.protobuf.json_format import MessageToJson, Parse
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pseudoword.generation.v1 import generation_pb2, resources_pb2

from service.request.params import GenerationParams

RECORD_KEY = "pseudoword"
_EXIF_IMAGE_DESCRIPTION = 0x010E
ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
_MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


def to_json(record: resources_pb2.PictureRecord) -> str:
    """A record as canonical JSON in ASCII: sorted keys, no redundant spaces."""
    return MessageToJson(record, preserving_proto_field_name=True, indent=None, sort_keys=True, ensure_ascii=True)


def to_file(
    pixels: np.ndarray, params: GenerationParams, record: resources_pb2.PictureRecord
) -> tuple[bytes, generation_pb2.PictureInfo]:
    """A picture file and its description. `pixels` is uint8 [height, width, 3].

    PNG contains the record as text under `pseudoword`, JPEG and WebP as EXIF's image description.
    """
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    if params.format == "PNG":
        text = PngInfo()
        text.add_text(RECORD_KEY, to_json(record))
        image.save(buffer, "PNG", pnginfo=text)
    else:
        exif = Image.Exif()
        exif[_EXIF_IMAGE_DESCRIPTION] = to_json(record)
        image.save(buffer, params.format, quality=params.quality, exif=exif)
    data = buffer.getvalue()
    info = generation_pb2.PictureInfo(
        media_type=_MEDIA_TYPES[params.format],
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        record=record,
    )
    return data, info


def from_file(data: bytes) -> resources_pb2.PictureRecord:
    """The record inside a file that to_file has written."""
    with Image.open(io.BytesIO(data)) as image:
        written = getattr(image, "text", {}).get(RECORD_KEY) or image.getexif()[_EXIF_IMAGE_DESCRIPTION]
    return Parse(written, resources_pb2.PictureRecord())
