"""Does a word fit a base model?"""

from enum import Enum, auto

from diffusion.spec import ModelSpec


class Match(Enum):
    """How well a word fits."""

    EXACT = auto()  # made for this very vocabulary
    FAMILY = auto()  # of the same family and width; or its base is not known, and the width agrees
    MISMATCH = auto()


def match(spec: ModelSpec, *, family: str | None, dims: int, vocabulary_digest: str | None) -> Match:
    """How a word of `family` (None: not known) and `dims`, made for the vocabulary of `vocabulary_digest` (None: not
    known), fits the model of one encoder that `spec` describes."""
    encoder = spec.encoders[0]
    if dims != encoder.dims or (family is not None and family != spec.family):
        return Match.MISMATCH
    return Match.EXACT if family is not None and vocabulary_digest == encoder.vocabulary_digest else Match.FAMILY
