"""Captions say what is there, and take a word in the noun's place."""

import re

import numpy as np
from hypothesis import given, settings

from miniature.captions import caption
from miniature.world import COLOURS, KINDS, Drawing
from tests.miniature.worlds import drawings, seeds

# The grammar of a caption's middle, read independently of how it is written.
_COLOUR = "|".join(COLOURS)
_NOUN = re.compile(
    rf"^(?:(?P<colour>{_COLOUR}) |(?P<pattern>striped|dotted|checkered) )*(?P<kind>{'|'.join(KINDS)}|toy)(?:s|es)?"
    rf"(?: with (?P<second>{_COLOUR}) (?:stripes|dots|checks))?$"
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
_STYLE_OF = {"sketch": "sketch", "pencil": "sketch", "pixel art": "pixel art", "van gogh": "van gogh"}


@settings(max_examples=300, deadline=None)
@given(drawings(), seeds)
def test_a_caption_says_only_what_is_there(drawing: Drawing, seed: int) -> None:
    made = caption(drawing, np.random.default_rng(seed))
    noun = _NOUN.match(made.noun)
    assert noun is not None, made.noun
    assert noun["kind"] in (drawing.toy.kind, "toy")
    assert noun["colour"] in (drawing.toy.colour.name, None)
    assert noun["pattern"] in (drawing.toy.pattern, None)
    assert noun["second"] in (drawing.toy.second.name, None)
    assert {"two": 2, "three": 3}.get(made.determiner, 1) == drawing.count
    for accessory in ("sunglasses", "a hat", "a scarf"):
        assert (accessory in made.tail) <= (drawing.accessory == accessory)
    for phrase, scene in _SCENE_OF.items():
        assert (phrase in made.tail) <= (drawing.scene == scene)
    for phrase, style in (*_STYLE_OF.items(), ("watercolor", "watercolor")):
        assert (phrase in made.form) <= (drawing.style == style)
    assert (drawing.side is not None) == made.tail.count(f" on the {drawing.side}")


@settings(max_examples=100, deadline=None)
@given(drawings(), seeds)
def test_a_word_takes_the_nouns_place_and_nothing_else_changes(drawing: Drawing, seed: int) -> None:
    made = caption(drawing, np.random.default_rng(seed))
    with_word = made.with_word("<rex>")
    assert with_word.count("<rex>") == 1
    assert with_word.replace("<rex>", made.noun) == made.plain
    assert not re.search(r"[{}]|  |^ | $", with_word)


@settings(max_examples=50, deadline=None)
@given(drawings(), seeds)
def test_equal_generators_give_equal_captions(drawing: Drawing, seed: int) -> None:
    assert caption(drawing, np.random.default_rng(seed)) == caption(drawing, np.random.default_rng(seed))
