"""Conversion of a ModelSpec to the API's BaseModel message."""

from pseudoword.registry.v1 import resources_pb2

from diffusion.spec import ModelSpec


def base_model(spec: ModelSpec) -> resources_pb2.BaseModel:
    """The base model in the provenance of a word learned on this model, or of a picture drawn by it."""
    encoders = [
        resources_pb2.EncoderSpec(name=one.name, dimensions=one.dims, vocabulary_digest=one.vocabulary_digest)
        for one in spec.encoders
    ]
    return resources_pb2.BaseModel(family=spec.family, checkpoint=spec.checkpoint, encoders=encoders)
