"""The record of a picture: everything needed to draw it again."""

from collections.abc import Sequence
from importlib.metadata import version as installed

from pseudoword.generation.v1 import resources_pb2

from diffusion.checkpoint import BaseModel
from diffusion.conversions import base_model
from service.request.params import GenerationParams

_SOFTWARE = ("pseudoword-server", "torch", "diffusers", "transformers")


class Recorder:
    """Makes the records of one resident model's pictures."""

    def __init__(self, model: BaseModel) -> None:
        self._made_with = resources_pb2.PictureRecord(
            base_model=base_model(model.spec),
            weights_digest=model.spec.digest,
            device=model.device.type,
            dtype=str(model.dtype).removeprefix("torch."),
            software={name: installed(name) for name in _SOFTWARE},
        )

    def records(
        self, params: GenerationParams, words: Sequence[resources_pb2.WordUse]
    ) -> list[resources_pb2.PictureRecord]:
        """One record for each picture."""
        records = []
        for index in range(params.count):
            record = resources_pb2.PictureRecord(settings=params.settings(index), words=words)
            if params.init_image is not None:
                record.start_picture_digest, record.mask_digest = params.init_image.digests
            record.MergeFrom(self._made_with)
            records.append(record)
        return records
