"""The notation of weights, and the effect of a weight."""

from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pseudoword.names import WordRef

from diffusion.checkpoint import BaseModel
from diffusion.encoder import PromptEncoder
from diffusion.errors import WeightInvalid
from diffusion.prompt import parse
from diffusion.weighting import read_weights


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a dog", [("a dog", 1.0)]),
        ("a (dog) b", [("a ", 1.0), ("dog", 1.1), (" b", 1.0)]),
        ("((dog))", [("dog", 1.21)]),
        ("[dog]", [("dog", 1 / 1.1)]),
        ("(dog:1.3)", [("dog", 1.3)]),
        ("(dog: 0.5 )", [("dog", 0.5)]),
        ("(a (b:2) c:.5)", [("a ", 0.5), ("b", 1.0), (" c", 0.5)]),
        (r"\(dog\) \[x\] \\", [("(dog) [x] \\", 1.0)]),
        ("(dog", [("(dog", 1.0)]),
        ("dog)", [("dog)", 1.0)]),
        ("(dog:-1) b", [("dog", -1.0), (" b", 1.0)]),
        ("(dog:+1.3)", [("dog", 1.3)]),
        ("(dog:1,3)", [("dog", 1.3)]),
        ("(dog: -,5 )", [("dog", -0.5)]),
        ("(dog:−2)", [("dog", -2.0)]),
        ("((dog:-1):2)", [("dog", -2.0)]),
        ("(dog:0)", [("dog", 0.0)]),
        ("(16:9:2)", [("16:9", 2.0)]),
        (r"\(at 12:30\)", [("(at 12:30)", 1.0)]),
        ("a clock at 12:30", [("a clock at 12:30", 1.0)]),
        ("happy :-)", [("happy :-)", 1.0)]),
        ("(a: b)", [("a: b", 1.1)]),
        ("(<rex>:1.5)", [("<rex>", 1.5)]),
    ],
)
def test_weights_are_read_from_the_notation(text: str, expected: list[tuple[str, float]]) -> None:
    found = read_weights(text)
    assert [one.text for one in found] == [one for one, _ in expected]
    assert [one.weight for one in found] == pytest.approx([number for _, number in expected])


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("a (blue:1.3.4) toy", 8),
        ("(blue:--1)", 6),
        ("(blue:1e3)", 6),
        ("(blue:1.3x)", 6),
        ("(blue:- )(red:- 1)", 14),
        ("(blue:nan)", 6),
        ("(blue:-inf)", 6),
        ("[blue:0.5]", 6),
        ("[blue:red:0.5]", 10),
        ("[blue:0.5)", 6),
        ("blue:1.3)", 5),
        ("(blue:1.3", 6),
    ],
)
def test_what_looks_like_a_weight_and_is_none_is_refused_with_its_position(text: str, position: int) -> None:
    with pytest.raises(WeightInvalid, match=f"at character {position}:") as refused:
        read_weights(text)
    assert refused.value.metadata == {"position": str(position)}


@pytest.mark.timeout(5)
@pytest.mark.parametrize("text", ["(a:" * 2000 + "1)" * 2000, "(a" * 2700 + ")" * 2700, ":" + " " * 8000, "(:" * 4000])
def test_the_longest_prompt_is_read_at_once(text: str) -> None:
    """The event loop reads prompts: time that grows with the square of a prompt's length would hold all requests."""
    assert read_weights(text)


@given(st.text(alphabet="ab ()[]:.,-1\\", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = read_weights(text)
    except WeightInvalid as error:
        assert text[int(error.metadata["position"]) - 1] == ":"
        return
    assert all(one.text for one in found)
    assert all(a.weight != b.weight for a, b in pairwise(found))


@given(st.text(alphabet="ab :.1", max_size=30))
def test_text_without_brackets_is_unchanged(text: str) -> None:
    assert "".join(one.text for one in read_weights(text)) == text


def test_words_have_the_weight_of_their_brackets() -> None:
    prompt = parse("a (photo of <rex>:1.4) now", weights=True)
    assert prompt.parts == ("a ", "photo of ", WordRef(None, "rex"), " now")
    assert prompt.weights == (1.0, 1.4, 1.4, 1.0)
    assert parse("a (dog:1.0)", weights=True).weights == ()


@torch.inference_mode()
def test_weight_interpolates_from_the_empty_prompt(model: BaseModel, vectors: Mapping[WordRef, torch.Tensor]) -> None:
    encoder = PromptEncoder(model)

    def hidden(text: str) -> torch.Tensor:
        return encoder.encode([parse(text, weights=True)], vectors)[0]

    plain, none, double = (hidden(text) for text in ("<mia> here", "(<mia>:0) here", "(<mia>:2) here"))
    empty = hidden("")
    mia, rest = slice(1, 4), slice(4, None)
    assert torch.allclose(none[mia], empty[mia], atol=1e-6)
    assert torch.allclose(double[mia] - plain[mia], plain[mia] - none[mia], atol=1e-5)
    assert torch.equal(none[rest], plain[rest])
    assert torch.equal(double[rest], plain[rest])


@torch.inference_mode()
def test_clip_skip_omits_the_last_layers(model: BaseModel) -> None:
    encoder = PromptEncoder(model)
    prompts = [parse("a photo of a dog")]
    kept = [encoder.encode(prompts, {}, clip_skip=skip) for skip in range(model.spec.encoders[0].layers)]
    assert all(not torch.equal(one, kept[0]) for one in kept[1:])
    layers = model.text_encoder.encoder.layers
    model.text_encoder.encoder.layers = layers[:-1]
    try:
        assert torch.equal(encoder.encode(prompts, {}), kept[1])
    finally:
        model.text_encoder.encoder.layers = layers
