"""The picture world: the attributes of a drawing, under the names that captions use.

A drawing shows one to three equal toys, or two different ones, of 16 kinds in any colour and pattern, in a pose, in
front of a scene or a plain background, with accessories, in any of a continuous space of styles. The bundled model
knows this world only. A Drawing has the attributes that its caption can name, and the exact colours; the generator that
`paint` gets decides the positions.
"""

import colorsys
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from miniature.chance import choose
from miniature.style import STYLE_NAMES, STYLES, Style, random_style

Rgb = tuple[int, int, int]
Kind = Literal[
    "ball", "cube", "cup", "cat", "owl", "fish", "car", "house",
    "tree", "robot", "mushroom", "star", "teapot", "bird", "boat", "flower",
]  # fmt: skip
ColourName = Literal[
    "red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "white", "black", "grey",
]  # fmt: skip
Pattern = Literal["plain", "striped", "dotted", "checkered", "banded"]
Accessory = Literal["sunglasses", "a hat", "a scarf"]
Scene = Literal["beach", "snow", "grass", "table", "space", "night"]
Side = Literal["left", "right"]
Pose = Literal["turned left", "turned right", "lying", "close"]
Relation = Literal["beside", "left of", "behind"]

KINDS: tuple[Kind, ...] = get_args(Kind)
COLOURS: tuple[ColourName, ...] = get_args(ColourName)
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
ACCESSORIES: tuple[Accessory, ...] = get_args(Accessory)
SCENES: tuple[Scene, ...] = get_args(Scene)
SIDES: tuple[Side, ...] = get_args(Side)
POSES: tuple[Pose, ...] = get_args(Pose)
RELATIONS: tuple[Relation, ...] = get_args(Relation)
MAX_COUNT = 3

# The range of each colour name: hue in degrees, saturation, value.
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
    """A shade, and its name in captions."""

    name: ColourName
    rgb: Rgb


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A toy. Toys of one kind differ in colours, pattern and proportions."""

    kind: Kind
    colour: Colour
    second: Colour
    """Second colour of the pattern; not visible in a plain toy."""
    pattern: Pattern = "plain"
    eye: float = 1.0
    """Size of the eyes; the average is 1, as of all proportions."""
    ear: float = 1.0
    """Length of ears, wheels, handles, petals and other projecting parts."""
    squash: float = 1.0
    """Height of the body."""
    period: float = 1.0
    """Width of stripes, dots, checks and bands."""

    @property
    def numbers(self) -> tuple[float, ...]:
        """The toy as 31 numbers of similar magnitude; toys that look equal have equal numbers."""
        patterned = self.pattern != "plain"
        second = self.second.rgb if patterned else (128, 128, 128)
        return (
            *(float(self.kind == kind) for kind in KINDS),
            *(float(self.pattern == pattern) for pattern in PATTERNS),
            *(channel / 127.5 - 1 for channel in (*self.colour.rgb, *second)),
            (self.eye - 1) * 3,
            (self.ear - 1) * 3,
            (self.squash - 1) * 6,
            (self.period - 1) * 4 if patterned else 0.0,
        )


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """The attributes of a drawing."""

    toy: Toy
    background: Colour
    """Colour of the wall behind the toy; not visible in a scene."""
    scene: Scene | None = None
    style: Style = STYLES["photo"]
    accessory: Accessory | None = None
    """Accessory of `toy`; `other` never has one."""
    count: int = 1
    side: Side | None = None
    """Side on which a single toy stands; None: near the middle."""
    pose: Pose | None = None
    """Pose of a single toy; None: upright, from the front."""
    other: Toy | None = None
    """A second toy, different from the first."""
    relation: Relation = "beside"
    """Position of `toy` relative to `other`."""

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_COUNT:
            raise ValueError(f"a drawing shows 1 to {MAX_COUNT} toys, not {self.count}")
        alone = self.count == 1 and self.other is None
        if self.side is not None and not alone:
            raise ValueError("only a single toy stands on a side")
        if self.pose is not None and not alone:
            raise ValueError("only a single toy has a pose")
        if self.other is not None and self.count != 1:
            raise ValueError("another toy is allowed only beside a single one")
        if self.pose == "close" and self.side is not None:
            raise ValueError("a toy in the pose 'close' fills the middle: it has no side")

    @property
    def toys(self) -> tuple[Toy, ...]:
        """The one or two different toys of the drawing."""
        return (self.toy,) if self.other is None else (self.toy, self.other)


def random_colour(rng: np.random.Generator, name: ColourName) -> Colour:
    """A random shade with the name."""
    hue, saturation, value = (rng.uniform(low, high) for low, high in _SHADES[name])
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return Colour(name=name, rgb=(int(255 * red), int(255 * green), int(255 * blue)))


def is_withheld(toy: Toy) -> bool:
    """Whether the toy is withheld from all training sets: a quarter of the combinations of kind and colour with
    bands."""
    if toy.pattern != "banded":
        return False
    return (KINDS.index(toy.kind) + COLOURS.index(toy.colour.name)) % 4 == 0


def random_toy(
    rng: np.random.Generator,
    *,
    kind: Kind | None = None,
    colour: ColourName | None = None,
    pattern: Pattern | None = None,
    second: ColourName | None = None,
) -> Toy:
    """A random toy with the given attributes, possibly a withheld one. Plain toys are twice as frequent as each
    pattern."""
    kinds, colours = KINDS if kind is None else (kind,), COLOURS if colour is None else (colour,)
    patterns, weights = (PATTERNS, (4, 2, 2, 2, 2)) if pattern is None else ((pattern,), (1,))
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


def training_toy(rng: np.random.Generator) -> Toy:
    """A random toy that is not withheld."""
    while is_withheld(toy := random_toy(rng)):
        pass
    return toy


def withheld_toy(rng: np.random.Generator) -> Toy:
    """A random withheld toy: its combination of kind, pattern and colour is in no training set."""
    while not is_withheld(toy := random_toy(rng, pattern="banded")):
        pass
    return toy


def random_drawing(rng: np.random.Generator, *, toy: Toy | None = None) -> Drawing:
    """A random drawing with the frequencies of the training set, of `toy` or of a random toy that is not withheld."""
    toy = toy or training_toy(rng)
    number = choose(rng, ("one", "two", "three", "pair"), weights=(70, 8, 6, 16))
    other = _unlike(rng, toy) if number == "pair" else None
    pose = choose(rng, POSES) if number == "one" and rng.random() < 0.2 else None
    sided = number == "one" and pose != "close" and rng.random() < 0.12
    taken = {toy.colour.name} if other is None else {toy.colour.name, other.colour.name}
    return Drawing(
        toy=toy,
        background=random_colour(rng, choose(rng, [name for name in COLOURS if name not in taken])),
        scene=choose(rng, SCENES) if rng.random() < 0.55 else None,
        style=training_style(rng),
        accessory=choose(rng, ACCESSORIES) if rng.random() < 0.3 else None,
        count={"two": 2, "three": 3}.get(number, 1),
        side=choose(rng, SIDES) if sided else None,
        pose=pose,
        other=other,
        relation=choose(rng, RELATIONS),
    )


def training_style(rng: np.random.Generator) -> Style:
    """A random style that is not withheld: a photo in about half of the cases, otherwise another named style or one
    without a name."""
    name = choose(rng, (*STYLE_NAMES, None), weights=(6, 1.2, 1.2, 1.5, 1.2, 1.8))
    return random_style(rng) if name is None else STYLES[name]


def _unlike(rng: np.random.Generator, toy: Toy) -> Toy:
    """A random toy of another kind and another colour."""
    while (other := training_toy(rng)).kind == toy.kind or other.colour.name == toy.colour.name:
        pass
    return other
