"""Captions describe their drawing, and take a word in the place of the noun."""

import re
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings

from miniature.captions import caption
from miniature.style import random_style
from miniature.world import COLOURS, KINDS, Drawing, Relation, Toy, random_colour, random_toy
from tests.miniature.worlds import drawings, seeds

# The grammar of a caption's noun, written independently of the code.
_COLOUR = "|".join(COLOURS)
_NOUN = re.compile(
    rf"^(?:(?P<colour>{_COLOUR}) |(?P<pattern>striped|dotted|checkered|banded) )*"
    rf"(?P<kind>{'|'.join(KINDS)}|toy)(?:s|es)?"
    rf"(?: with (?P<second>{_COLOUR}) (?:stripes|dots|checks|band))?$"
)
_SCENE_OF = {
    " on the beach": "beach",
    " in the snow": "snow",
    " on the grass": "grass",
    " in a field": "grass",
    " on a wooden table": "table",
    " on a table": "table",
    " in space": "space",
    " at night": "night",
}
_POSE_OF = {
    " turned to the left": "turned left",
    " turned to the right": "turned right",
    " lying down": "lying",
    " up close": "close",
}
_RELATION_WORDS: Mapping[Relation, tuple[str, ...]] = {
    "beside": ("beside", "and", "next"),
    "left of": ("left",),
    "behind": ("behind",),
}
_STYLE_OF = {"sketch": "sketch", "pencil": "sketch", "pixel art": "pixel art", "van gogh": "van gogh"}


@settings(max_examples=300, deadline=None)
@given(drawings(), seeds)
def test_caption_describes_only_what_the_drawing_shows(drawing: Drawing, seed: int) -> None:
    made = caption(drawing, np.random.default_rng(seed))
    assert_names(made.noun, drawing.toy)
    if drawing.other is None:
        assert made.other == made.relation == ""
    else:
        assert_names(made.other, drawing.other)
        assert made.relation.split()[0] in _RELATION_WORDS[drawing.relation]
    assert {"two": 2, "three": 3}.get(made.determiner, 1) == drawing.count
    for accessory in ("sunglasses", "a hat", "a scarf"):
        assert (accessory in made.accessory) <= (drawing.accessory == accessory)
    for phrase, scene in _SCENE_OF.items():
        assert (phrase in made.tail) <= (drawing.scene == scene)
    for phrase, pose in _POSE_OF.items():
        assert (phrase in made.tail) <= (drawing.pose == pose)
    assert (made.form is None) == (drawing.style.name is None)
    for phrase, style in (*_STYLE_OF.items(), ("watercolor", "watercolor")):
        assert (phrase in (made.form or "")) <= (drawing.style.name == style)
    assert (drawing.side is not None) == made.tail.count(f" on the {drawing.side}")


@settings(max_examples=100, deadline=None)
@given(drawings(), seeds)
def test_words_replace_toys_and_style_only(drawing: Drawing, seed: int) -> None:
    made = caption(drawing, np.random.default_rng(seed))
    other = "<mia>" if drawing.other else None
    sentence = made.with_words(toy="<rex>", other=other, style="<mara>")
    assert not re.search(r"[{}*]|  |^ | $", sentence)
    assert sentence.count("<mara>") == 1
    if "{}" not in made.styled:
        assert sentence == made.styled.replace("*", "<mara>")
        return
    assert sentence.count("<rex>") == 1
    assert sentence.count("<mia>") == (drawing.other is not None)
    if drawing.style.name is not None:
        assert made.with_word("<rex>").replace("<rex>", made.noun) == made.plain


def test_unnamed_style_needs_a_word() -> None:
    rng = np.random.default_rng(0)
    made = caption(Drawing(toy=random_toy(rng), background=random_colour(rng, "red"), style=random_style(rng)), rng)
    with pytest.raises(ValueError, match="only a word"):
        _ = made.plain
    with pytest.raises(ValueError, match="no other toy"):
        made.with_words(other="<mia>", style="<mara>")


@settings(max_examples=300, deadline=None)
@given(drawings(), seeds)
def test_captions_fit_into_the_text_encoder(drawing: Drawing, seed: int) -> None:
    """It has 32 tokens with start and end; each word is one token of the bundled vocabulary."""
    made = caption(drawing, np.random.default_rng(seed))
    assert len(made.with_words(style=None if made.form else "it").split()) <= 28


@settings(max_examples=50, deadline=None)
@given(drawings(), seeds)
def test_equal_generators_give_equal_captions(drawing: Drawing, seed: int) -> None:
    assert caption(drawing, np.random.default_rng(seed)) == caption(drawing, np.random.default_rng(seed))


def assert_names(noun: str, toy: Toy) -> None:
    """Asserts that a noun says nothing wrong about a toy."""
    found = _NOUN.match(noun)
    assert found is not None, noun
    assert found["kind"] in (toy.kind, "toy")
    assert found["colour"] in (toy.colour.name, None)
    assert found["pattern"] in (toy.pattern, None)
    assert found["second"] in (toy.second.name, None)
