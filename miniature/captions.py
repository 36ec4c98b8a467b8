"""Captions: what a drawing shows in plain English, and the same sentence with a word in the noun's place."""

from dataclasses import dataclass

import numpy as np

from miniature.world import Drawing, Pattern, Scene, Style, Toy, choose

_SCENES: dict[Scene, tuple[str, ...]] = {
    "beach": ("on the beach",),
    "snow": ("in the snow",),
    "grass": ("on the grass", "in a field"),
    "table": ("on a wooden table", "on a table"),
    "space": ("in space",),
    "night": ("at night",),
}
_STYLES: dict[Style, tuple[str, ...]] = {
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
_MARKS: dict[Pattern, str] = {"striped": "stripes", "dotted": "dots", "checkered": "checks"}
_COUNTS = {2: "two", 3: "three"}


@dataclass(frozen=True, kw_only=True)
class Caption:
    """One sentence about a drawing, kept in parts so that a word can stand for the toy."""

    form: str
    """The style's phrase, `{}` where the rest goes: "a sketch of {}"."""
    determiner: str
    """"a", "the", "one", "two", "three"."""
    noun: str
    """What a word stands for, adjectives included: "red striped cat with white stripes"."""
    tail: str
    """Accessory, side and place, each with a blank before it; may be empty."""

    @property
    def plain(self) -> str:
        """The sentence in the vocabulary's own words."""
        return self.with_word(self.noun)

    def with_word(self, word: str) -> str:
        """The sentence with `word`, such as "<rex>", for the toy and all that makes it this one."""
        return self.form.format(f"{self.determiner} {word}{self.tail}")


def caption(drawing: Drawing, rng: np.random.Generator) -> Caption:
    """One of the sentences that the model was trained with; it may leave out some of what is there."""
    return Caption(
        form=choose(rng, _STYLES[drawing.style]),
        determiner=_COUNTS.get(drawing.count) or choose(rng, ("a", "the", "a", "one")),
        noun=_noun(drawing.toy, drawing.count, rng),
        tail=_tail(drawing, rng),
    )


def _noun(toy: Toy, count: int, rng: np.random.Generator) -> str:
    words: list[str] = [toy.colour.name] if rng.random() < 0.75 else []
    patterned = toy.pattern != "plain" and rng.random() < 0.85
    if patterned:
        words.insert(int(rng.integers(len(words) + 1)), toy.pattern)
    noun = toy.kind if rng.random() > 0.06 else "toy"
    plural = "" if count == 1 else "es" if noun == "fish" else "s"
    phrase = " ".join([*words, noun + plural])
    if patterned and rng.random() < 0.35:
        phrase += f" with {toy.second.name} {_MARKS[toy.pattern]}"
    return phrase


def _tail(drawing: Drawing, rng: np.random.Generator) -> str:
    tail = ""
    if drawing.accessory is not None and rng.random() < 0.95:
        tail += f" {choose(rng, ('with', 'wearing'))} {drawing.accessory}"
    if drawing.side is not None:
        tail += f" on the {drawing.side}"
    if drawing.scene is None:
        if rng.random() < 0.7:
            tail += f" on a {drawing.background.name} background"
    elif rng.random() < 0.92:
        tail += f" {choose(rng, _SCENES[drawing.scene])}"
    return tail
