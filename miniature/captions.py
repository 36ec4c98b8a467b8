"""Captions of drawings: plain English sentences, and the same sentences with learned words for toys and style."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from miniature.chance import choose
from miniature.style import Style, StyleName
from miniature.world import Drawing, Pattern, Pose, Relation, Scene, Toy

_SCENES: Mapping[Scene, tuple[str, ...]] = {
    "beach": ("on the beach",),
    "snow": ("in the snow",),
    "grass": ("on the grass", "in a field"),
    "table": ("on a wooden table", "on a table"),
    "space": ("in space",),
    "night": ("at night",),
}
_STYLES: Mapping[StyleName, tuple[str, ...]] = {
    "photo": (
        "a photo of {}",
        "{}",
        "a picture of {}",
        "a rendering of {}",
        "a good photo of {}",
        "a close-up photo of {}",
    ),
    "sketch": ("a sketch of {}", "a pencil drawing of {}", "{} in the style of a sketch"),
    "pixel art": ("pixel art of {}", "{} in the style of pixel art"),
    "van gogh": (
        "{} in the style of van gogh",
        "a painting of {} in the style of van gogh",
        "a van gogh painting of {}",
    ),
    "watercolor": ("a watercolor painting of {}", "{} in watercolor style", "{} in the style of watercolor"),
}
# Forms with a word for the style. _STYLE_ALONE follows the paper's templates for styles, which name no object.
_STYLED = ("{} in the style of *", "a painting of {} in the style of *", "a picture of {} in the style of *")
_STYLE_ALONE = ("a painting in the style of *", "a picture in the style of *", "a rendering in the style of *")
_MARKS: Mapping[Pattern, str] = {"striped": "stripes", "dotted": "dots", "checkered": "checks", "banded": "band"}
_POSES: Mapping[Pose, str] = {
    "turned left": "turned to the left",
    "turned right": "turned to the right",
    "lying": "lying down",
    "close": "up close",
}
_RELATIONS: Mapping[Relation, tuple[str, ...]] = {
    "beside": ("beside", "and", "next to"),
    "left of": ("left of",),
    "behind": ("behind",),
}
_COUNTS = {2: "two", 3: "three"}


@dataclass(frozen=True, kw_only=True)
class Caption:
    """One sentence about a drawing, in parts, so that learned words can replace the toys and the style."""

    form: str | None
    """The style's phrase, with `{}` for the rest: "a sketch of {}". None: the style has no name."""
    styled: str
    """The phrase with `*` for a word for the style; if it has no `{}`, the sentence does not mention the toys."""
    determiner: str
    """"a", "the", "one", "two", "three"."""
    noun: str
    """The part that a word replaces, with its adjectives: "red striped cat with white stripes"."""
    accessory: str
    """Begins with a space, like the parts below; may be empty."""
    relation: str
    """The toy's position relative to the other toy, and the other toy's determiner."""
    other: str
    """The other toy's noun; empty if there is no other toy."""
    tail: str
    """Pose, side and scene; may be empty."""

    @property
    def plain(self) -> str:
        """The sentence without learned words.

        Raises:
            ValueError: The style has no name.
        """
        return self.with_words()

    def with_word(self, word: str) -> str:
        """The sentence with `word`, such as "<rex>", for the toy and its adjectives."""
        return self.with_words(toy=word)

    def with_words(self, *, toy: str | None = None, other: str | None = None, style: str | None = None) -> str:
        """The sentence with the given words for the toy, the other toy and the style.

        Raises:
            ValueError: There is no other toy, or the style has no name and no word for it is given.
        """
        if other is not None and not self.other:
            raise ValueError("there is no other toy")
        if style is None and self.form is None:
            raise ValueError("only a word can name a style that has no name")
        form = self.styled.replace("*", style) if style is not None else self.form or "{}"
        things = f"{self.determiner} {toy or self.noun}{self.accessory}"
        if self.other:
            things += f"{self.relation} {other or self.other}"
        return form.format(things + self.tail)


def caption(drawing: Drawing, rng: np.random.Generator) -> Caption:
    """A random training caption of the drawing; it may omit some of the drawing's attributes.

    A sentence about two toys has fewer adjectives for each, so that it fits the text encoder's 32 tokens.
    """
    pair = drawing.other is not None
    determiner = _COUNTS.get(drawing.count) or choose(rng, ("a", "the", "a", "one"))
    noun = _noun(drawing.toy, drawing.count, rng, short=pair)
    accessory = ""
    if drawing.accessory is not None and rng.random() < 0.95:
        accessory = f" {choose(rng, ('with', 'wearing'))} {drawing.accessory}"
    relation = other = ""
    if drawing.other is not None:
        relation = f" {choose(rng, _RELATIONS[drawing.relation])} {choose(rng, ('a', 'the', 'a'))}"
        other = _noun(drawing.other, 1, rng, short=True)
    return Caption(
        form=_form(drawing.style, rng),
        styled=choose(rng, _STYLE_ALONE if rng.random() < 0.2 else _STYLED),
        determiner=determiner,
        noun=noun,
        accessory=accessory,
        relation=relation,
        other=other,
        tail=_tail(drawing, rng),
    )


def _form(style: Style, rng: np.random.Generator) -> str | None:
    return None if style.name is None else choose(rng, _STYLES[style.name])


def _noun(toy: Toy, count: int, rng: np.random.Generator, *, short: bool) -> str:
    words: list[str] = [toy.colour.name] if rng.random() < 0.75 else []
    patterned = toy.pattern != "plain" and rng.random() < 0.85
    if patterned:
        words.insert(int(rng.integers(len(words) + 1)), toy.pattern)
    noun = toy.kind if rng.random() > 0.06 else "toy"
    plural = "" if count == 1 else "es" if noun == "fish" else "s"
    phrase = " ".join([*words, noun + plural])
    if patterned and rng.random() < 0.35 and not short:
        phrase += f" with {toy.second.name} {_MARKS[toy.pattern]}"
    return phrase


def _tail(drawing: Drawing, rng: np.random.Generator) -> str:
    tail = ""
    if drawing.pose is not None and rng.random() < 0.9:
        tail += f" {_POSES[drawing.pose]}"
    if drawing.side is not None:
        tail += f" on the {drawing.side}"
    if drawing.scene is None:
        if rng.random() < 0.7:
            tail += f" on a {drawing.background.name} background"
    elif rng.random() < 0.92:
        tail += f" {choose(rng, _SCENES[drawing.scene])}"
    return tail
