"""Whether a word fits a base model."""

from enum import Enum, auto

from diffusion.spec import ModelSpec


class Match(Enum):
    """How well a word fits."""

    EXACT = auto()  # made for the same vocabulary
    FAMILY = auto()  # same family and width; or its family is unknown, and the width is the same
    MISMATCH = auto()


def match(spec: ModelSpec, *, family: str | None, dims: int, vocabulary_digest: str | None) -> Match:
    """How well a word fits the model of `spec`, which has one encoder. The word has `dims` dimensions, and was made for
    `family` and the vocabulary with `vocabulary_digest` (each None: unknown)."""
    encoder = spec.encoders[0]
    if dims != encoder.dims or (family is not None and family != spec.family):
        return Match.MISMATCH
    return Match.EXACT if family is not None and vocabulary_digest == encoder.vocabulary_digest else Match.FAMILY
