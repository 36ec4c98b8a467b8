"""Finished pictures as files: what made a picture is written into it, and nothing else, so equal pictures are equal
files."""

import hashlib
import io
from collections.abc import Sequence
from importlib.metadata import version as installed

import numpy as np
from google.protobuf.json_format import MessageToJson, Parse
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pseudoword.generation.v1 import generation_pb2, resources_pb2

from diffusion.checkpoint import BaseModel
from diffusion.conversions import base_model
from service.request.params import GenerationParams

RECORD_KEY = "pseudoword"
_EXIF_IMAGE_DESCRIPTION = 0x010E
ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
_MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_SOFTWARE = ("pseudoword-server", "torch", "diffusers", "transformers")


class Recorder:
    """Writes the records of one resident model's pictures."""

    def __init__(self, model: BaseModel) -> None:
        self._made_with = resources_pb2.PictureRecord(
            base_model=base_model(model.spec),
            weights_digest=model.spec.digest,
            device=model.device.type,
            dtype=str(model.dtype).removeprefix("torch."),
            software={name: installed(name) for name in _SOFTWARE},
        )

    def records(
        self, params: GenerationParams, settings: resources_pb2.PictureSettings, words: Sequence[resources_pb2.WordUse]
    ) -> list[resources_pb2.PictureRecord]:
        """One record for each picture; `settings` are the request's, for the prompts as they were written."""
        records = []
        for index in range(params.count):
            record = resources_pb2.PictureRecord(
                settings=params.settings(index, settings.prompt, settings.negative_prompt), words=words
            )
            if params.start is not None:
                record.start_picture_digest, record.mask_digest = params.start.digests
            record.MergeFrom(self._made_with)
            records.append(record)
        return records


def to_json(record: resources_pb2.PictureRecord) -> str:
    """A record as canonical JSON in ASCII: keys sorted, no spaces to spare."""
    return MessageToJson(record, preserving_proto_field_name=True, indent=None, sort_keys=True, ensure_ascii=True)


def to_file(
    pixels: np.ndarray, params: GenerationParams, record: resources_pb2.PictureRecord
) -> tuple[bytes, generation_pb2.PictureInfo]:
    """A picture file and what it is. `pixels` is uint8 [height, width, 3].

    PNG holds the record as text under `pseudoword`, JPEG and WebP as EXIF's image description.
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
    """The record inside a file that to_file has made."""
    with Image.open(io.BytesIO(data)) as image:
        written = getattr(image, "text", {}).get(RECORD_KEY) or image.getexif()[_EXIF_IMAGE_DESCRIPTION]
    return Parse(written, resources_pb2.PictureRecord())


def to_preview(pixels: np.ndarray) -> bytes:
    """A small PNG; `pixels` is uint8 [height, width, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
