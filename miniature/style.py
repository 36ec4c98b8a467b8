"""Styles: a continuous space of drawing parameters, in which five points have names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from miniature.chance import choose

StyleName = Literal["photo", "sketch", "pixel art", "van gogh", "watercolor"]
STYLE_NAMES: tuple[StyleName, ...] = get_args(StyleName)

# Degrees. Styles with shadows of these hues are withheld: no training set contains them.
_WITHHELD_HUES = (140.0, 200.0)


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a drawing is rendered. The defaults are those of a photo."""

    name: StyleName | None = None
    """The style's name in captions; None: only a learned word can name it."""
    line: float = 0
    """Darkness of the lines at changes of brightness, 0 to 1."""
    colour: float = 1
    """Opacity of the colours over the paper, 0 to 1."""
    wash: float = 0
    """Amount of water in the paint, 0 to 1: it lightens colours and blurs edges."""
    block: int = 1
    """Width of a block in pixels: 1, 2 or 4."""
    stroke: float = 0
    """Length of the brush strokes, 0 to 1."""
    swirl: float = 1
    """Direction of the strokes: 0: all equal; 1: along a swirling field."""
    direction: float = 0
    """Direction of straight strokes in radians, 0 to pi."""
    fineness: float = 0.85
    """Number of strokes in 2 pi pixels, 0.5 to 1.1."""
    palette: float = 0
    """Strength of the tint of shadows and lights, 0 to 3."""
    hue: float = 225
    """Hue of the shadows' tint in degrees; the lights have the opposite hue."""

    @property
    def is_withheld(self) -> bool:
        """Whether the style is withheld from all training sets."""
        return self.palette > 0 and _WITHHELD_HUES[0] <= self.hue < _WITHHELD_HUES[1]

    @property
    def numbers(self) -> tuple[float, ...]:
        """The style as 13 numbers of similar magnitude; styles that look equal have equal numbers."""
        along = self.stroke * (1 - self.swirl)
        around = math.radians(self.hue)
        return (
            self.line,
            self.colour,
            self.wash,
            float(self.block == 2),
            float(self.block == 4),
            self.stroke,
            self.stroke * self.swirl,
            along * math.cos(2 * self.direction),
            along * math.sin(2 * self.direction),
            self.stroke * self.fineness,
            self.palette / 3,
            self.palette / 3 * math.cos(around),
            self.palette / 3 * math.sin(around),
        )


STYLES: Mapping[StyleName, Style] = {
    "photo": Style(name="photo"),
    "sketch": Style(name="sketch", line=1, colour=0),
    "pixel art": Style(name="pixel art", block=4),
    "van gogh": Style(name="van gogh", stroke=1, palette=1),
    "watercolor": Style(name="watercolor", wash=1),
}


def random_style(rng: np.random.Generator, *, withheld: bool = False) -> Style:
    """A random style without a name: a palette and one or two other properties. With `withheld` a withheld style,
    otherwise never one."""
    low, high = _WITHHELD_HUES
    hue = rng.uniform(low, high) if withheld else rng.uniform(high, low + 360) % 360
    ways = set(rng.choice(["line", "wash", "block", "stroke"], size=int(rng.integers(1, 3)), replace=False))
    return Style(
        line=rng.uniform(0.4, 1) if "line" in ways else 0,
        colour=rng.uniform(0.4, 1) if "line" in ways else 1,
        wash=rng.uniform(0.4, 0.9) if "wash" in ways else 0,
        block=choose(rng, (2, 4)) if "block" in ways else 1,
        stroke=rng.uniform(0.3, 0.9) if "stroke" in ways else 0,
        swirl=choose(rng, (0.0, 1.0)),
        direction=rng.uniform(0, math.pi),
        fineness=rng.uniform(0.55, 1.0),
        palette=rng.uniform(1, 3),
        hue=hue,
    )
