"""The base model as the contract speaks of it."""

from pseudoword.registry.v1 import resources_pb2

from diffusion.spec import ModelSpec


def base_model(spec: ModelSpec) -> resources_pb2.BaseModel:
    """What a word made on this model, or a picture drawn by it, is said to be made with."""
    encoders = [
        resources_pb2.EncoderSpec(name=one.name, dimensions=one.dims, vocabulary_digest=one.vocabulary_digest)
        for one in spec.encoders
    ]
    return resources_pb2.BaseModel(family=spec.family, checkpoint=spec.checkpoint, encoders=encoders)
