"""Parsing of prompts."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pseudoword.names import WordRef

from diffusion.checkpoint import BaseModel
from diffusion.encoder import PromptEncoder
from diffusion.errors import PromptTooLong
from diffusion.prompt import parse

REX = WordRef(None, "rex")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ()),
        ("a dog", ("a dog",)),
        ("<rex>", (REX,)),
        ("a photo of <rex> on", ("a photo of ", REX, " on")),
        ("<rex><rex@2>", (REX, WordRef(None, "rex", None, 2))),
        ("<shop/rex@canary>!", (WordRef("shop", "rex", "canary"), "!")),
        (r"\<rex>", ("<rex>",)),
        (r"1 \< 2", ("1 < 2",)),
        ("1 < 2 > 0", ("1 < 2 > 0",)),
        ("<Rex> <rex", ("<Rex> <rex",)),
        ("<<rex>>", ("<", REX, ">")),
        ("<|endoftext|>", ("<|endoftext|>",)),
        ("\ufeffa dog", ("a dog",)),
    ],
)
def test_prompt_is_parsed_into_texts_and_words(text: str, parts: tuple[object, ...]) -> None:
    assert parse(text).parts == parts


@given(st.text(alphabet="<>\\/@ab1- ", max_size=60))
def test_parts_alternate_and_reproduce_the_prompt(text: str) -> None:
    parts = parse(text).parts
    assert all(part != "" for part in parts)
    assert not any(isinstance(a, str) and isinstance(b, str) for a, b in itertools.pairwise(parts))
    written = "".join(part if isinstance(part, str) else f"<{part}>" for part in parts)
    assert written == text.replace("\\<", "<")


def test_words_are_listed_once_in_order() -> None:
    assert [str(ref) for ref in parse("<b> <a> <b> <a@2>").words] == ["b", "a", "a@2"]


def test_prompt_longer_than_the_encoder_is_rejected_with_its_length(model: BaseModel) -> None:
    encoder = PromptEncoder(model)
    limit = model.spec.encoders[0].length
    fits = encoder.tokenizer.tokenize(parse("<rex>"), {REX: limit - 2})
    assert len(fits.ids) == fits.used == limit
    with pytest.raises(PromptTooLong) as caught:
        encoder.tokenizer.tokenize(parse("<rex>"), {REX: limit - 1})
    assert caught.value.metadata == {"needed": str(limit + 1), "limit": str(limit)}
