"""The picture world: what a drawing shows, in the words that captions use for it.

Toys of 16 kinds in any colour and pattern, before scenes or plain backgrounds, with accessories, in five styles. The
bundled model knows this world and nothing else. A drawing is what its caption can say and the colours; where exactly
things lie is up to the generator that `paint` is given.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np

_T = TypeVar("_T")

Rgb = tuple[int, int, int]
Kind = Literal[
    "ball", "cube", "cup", "cat", "owl", "fish", "car", "house",
    "tree", "robot", "mushroom", "star", "teapot", "bird", "boat", "flower",
]  # fmt: skip
ColourName = Literal[
    "red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "white", "black", "grey",
]  # fmt: skip
Pattern = Literal["plain", "striped", "dotted", "checkered"]
Accessory = Literal["sunglasses", "a hat", "a scarf"]
Scene = Literal["beach", "snow", "grass", "table", "space", "night"]
Style = Literal["photo", "sketch", "pixel art", "van gogh", "watercolor"]
Side = Literal["left", "right"]

KINDS: tuple[Kind, ...] = get_args(Kind)
COLOURS: tuple[ColourName, ...] = get_args(ColourName)
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
ACCESSORIES: tuple[Accessory, ...] = get_args(Accessory)
SCENES: tuple[Scene, ...] = get_args(Scene)
STYLES: tuple[Style, ...] = get_args(Style)
SIDES: tuple[Side, ...] = get_args(Side)
MAX_COUNT = 3

# What a name covers: hue in degrees, saturation, value.
_SHADES: dict[ColourName, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-8, 8), (0.75, 1), (0.75, 0.95)),
    "orange": ((20, 34), (0.8, 1), (0.85, 1)),
    "yellow": ((46, 58), (0.75, 1), (0.9, 1)),
    "green": ((95, 140), (0.55, 0.9), (0.45, 0.8)),
    "teal": ((168, 186), (0.6, 0.95), (0.5, 0.8)),
    "blue": ((205, 232), (0.6, 0.95), (0.6, 0.95)),
    "purple": ((262, 285), (0.5, 0.85), (0.5, 0.85)),
    "pink": ((318, 340), (0.3, 0.6), (0.9, 1)),
    "brown": ((18, 32), (0.5, 0.75), (0.3, 0.5)),
    "white": ((0, 360), (0, 0.04), (0.94, 1)),
    "black": ((0, 360), (0, 0.2), (0.06, 0.16)),
    "grey": ((0, 360), (0, 0.06), (0.45, 0.65)),
}


@dataclass(frozen=True, kw_only=True)
class Colour:
    """One shade and the name that captions call it by."""

    name: ColourName
    rgb: Rgb


@dataclass(frozen=True, kw_only=True)
class Toy:
    """One toy, told from others of its kind by colours, pattern and proportions."""

    kind: Kind
    colour: Colour
    second: Colour
    """Of the pattern; not seen where that is plain."""
    pattern: Pattern = "plain"
    eye: float = 1.0
    """Size of the eyes; 1 is usual, as for all proportions."""
    ear: float = 1.0
    """Length of ears, wheels, handles, petals: whatever sticks out."""
    squash: float = 1.0
    """Height of the body."""
    period: float = 1.0
    """Width of stripes, dots and checks."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A toy, once or several times, somewhere, in a style."""

    toy: Toy
    background: Colour
    """Of the wall behind; not seen where there is a scene."""
    scene: Scene | None = None
    style: Style = "photo"
    accessory: Accessory | None = None
    count: int = 1
    side: Side | None = None
    """Where a single toy stands; None: about the middle."""

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_COUNT:
            raise ValueError(f"a drawing shows 1 to {MAX_COUNT} toys, not {self.count}")
        if self.side is not None and self.count != 1:
            raise ValueError("only a single toy stands on a side")


def random_colour(rng: np.random.Generator, name: ColourName) -> Colour:
    """Any shade that goes by the name."""
    hue, saturation, value = (rng.uniform(low, high) for low, high in _SHADES[name])
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return Colour(name=name, rgb=(int(255 * red), int(255 * green), int(255 * blue)))


def random_toy(
    rng: np.random.Generator,
    *,
    kind: Kind | None = None,
    colour: ColourName | None = None,
    pattern: Pattern | None = None,
    second: ColourName | None = None,
) -> Toy:
    """Any toy that is as asked; what is None is drawn, plain toys twice as often as each pattern."""
    kinds, colours = KINDS if kind is None else (kind,), COLOURS if colour is None else (colour,)
    patterns, weights = (PATTERNS, (4, 2, 2, 2)) if pattern is None else ((pattern,), (1,))
    shade = choose(rng, colours)
    others = [other for other in COLOURS if other != shade] if second is None else [second]
    return Toy(
        kind=choose(rng, kinds),
        colour=random_colour(rng, shade),
        second=random_colour(rng, choose(rng, others)),
        pattern=choose(rng, patterns, weights=weights),
        eye=rng.uniform(0.7, 1.4),
        ear=rng.uniform(0.7, 1.35),
        squash=rng.uniform(0.85, 1.15),
        period=rng.uniform(0.8, 1.3),
    )


def random_drawing(rng: np.random.Generator, *, toy: Toy | None = None) -> Drawing:
    """Any drawing, of the toy or of any, as often as the model saw each kind of drawing in training."""
    toy = toy or random_toy(rng)
    count = choose(rng, (1, 2, 3), weights=(8, 1, 0.7))
    return Drawing(
        toy=toy,
        background=random_colour(rng, choose(rng, [name for name in COLOURS if name != toy.colour.name])),
        scene=choose(rng, SCENES) if rng.random() < 0.55 else None,
        style=choose(rng, STYLES, weights=(6, 1.2, 1.2, 1.5, 1.2)),
        accessory=choose(rng, ACCESSORIES) if rng.random() < 0.3 else None,
        count=count,
        side=choose(rng, SIDES) if count == 1 and rng.random() < 0.12 else None,
    )


def choose(rng: np.random.Generator, among: Sequence[_T], *, weights: Sequence[float] | None = None) -> _T:
    """One of `among`, each as often as its weight says, or all alike. Keeps the type, as rng.choice does not."""
    if weights is None:
        return among[int(rng.integers(len(among)))]
    shares = np.asarray(weights, dtype=np.float64)
    return among[int(rng.choice(len(among), p=shares / shares.sum()))]
