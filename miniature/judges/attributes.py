"""The attributes of a drawing that judges answer for: the possible answers, the true one, and whether it is visible."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miniature.style import STYLE_NAMES
from miniature.world import ACCESSORIES, COLOURS, KINDS, PATTERNS, SCENES, Colour, Drawing

_NONE = "none"
_VISIBLE_DISTANCE = 90  # minimum RGB distance (0 to 255 in each channel) of two colours for a visible pattern


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One attribute of a drawing."""

    name: str
    answers: tuple[str, ...]
    sentences: tuple[str, ...]
    """A sentence for each answer, for CLIP."""
    truth: Callable[[Drawing], tuple[str, ...]]
    """The true answer; several if two toys differ, or if two answers are equally true."""
    seen: Callable[[Drawing], bool]
    """Whether the answer is visible in the drawing."""


def _far(one: Colour, other: Colour) -> bool:
    return float(np.linalg.norm(np.subtract(one.rgb, other.rgb))) >= _VISIBLE_DISTANCE


def _colours(drawing: Drawing) -> tuple[str, ...]:
    """The colours of the toys. In stripes and checks the second colour counts as much as the one in captions."""
    return tuple(
        colour.name
        for toy in drawing.toys
        for colour in ((toy.colour, toy.second) if toy.pattern in ("striped", "checkered") else (toy.colour,))
    )


def _single(drawing: Drawing) -> bool:
    return drawing.other is None and drawing.count == 1


def _accessory_seen(drawing: Drawing) -> bool:
    """Strokes and blocks hide small accessories; black sunglasses and a red scarf are invisible on a toy of their
    colour."""
    if not _single(drawing) or drawing.style.name not in ("photo", "sketch", "watercolor"):
        return False
    colour = drawing.toy.colour.name
    return not (
        (drawing.accessory == "sunglasses" and (colour == "black" or drawing.style.name == "watercolor"))
        or (drawing.accessory == "a scarf" and colour == "red")
    )


ATTRIBUTES: Mapping[str, Attribute] = {
    attribute.name: attribute
    for attribute in (
        Attribute(
            name="kind",
            answers=KINDS,
            sentences=tuple(f"a {kind}" for kind in KINDS),
            truth=lambda drawing: tuple(toy.kind for toy in drawing.toys),
            seen=lambda drawing: _single(drawing) or drawing.style.name in ("photo", "watercolor", "sketch"),
        ),
        Attribute(
            name="colour",
            answers=COLOURS,
            sentences=tuple(f"a {colour} toy" for colour in COLOURS),
            truth=_colours,
            seen=lambda drawing: drawing.style.name in ("photo", "pixel art", "watercolor", "van gogh"),
        ),
        Attribute(
            name="pattern",
            answers=PATTERNS,
            sentences=tuple(f"a {pattern} toy" for pattern in PATTERNS),
            truth=lambda drawing: (drawing.toy.pattern,),
            seen=lambda drawing: (
                _single(drawing)
                and drawing.style.name == "photo"
                and (drawing.toy.pattern == "plain" or _far(drawing.toy.colour, drawing.toy.second))
            ),
        ),
        Attribute(
            name="style",
            answers=STYLE_NAMES,
            sentences=(
                "a photo of a toy",
                "a sketch of a toy",
                "pixel art of a toy",
                "a van gogh painting of a toy",
                "a watercolor painting of a toy",
            ),
            truth=lambda drawing: (str(drawing.style.name),),
            seen=lambda drawing: drawing.style.name is not None,
        ),
        Attribute(
            name="accessory",
            answers=(_NONE, *ACCESSORIES),
            sentences=("a toy", *(f"a toy wearing {accessory}" for accessory in ACCESSORIES)),
            truth=lambda drawing: (drawing.accessory or _NONE,),
            seen=_accessory_seen,
        ),
        Attribute(
            name="scene",
            answers=(_NONE, *SCENES),
            sentences=(
                "a toy on a background",
                "a toy on the beach",
                "a toy in the snow",
                "a toy on the grass",
                "a toy on a wooden table",
                "a toy in space",
                "a toy at night",
            ),
            truth=lambda drawing: (drawing.scene or _NONE,),
            seen=lambda drawing: drawing.style.name in ("photo", "pixel art", "watercolor", "van gogh"),
        ),
        Attribute(
            name="background",
            answers=COLOURS,
            sentences=tuple(f"a toy on a {colour} background" for colour in COLOURS),
            truth=lambda drawing: (drawing.background.name,),
            seen=lambda drawing: drawing.scene is None and drawing.style.name in ("photo", "pixel art", "watercolor"),
        ),
        Attribute(
            name="count",
            answers=("one", "two", "three", "a pair"),
            sentences=("one toy", "two toys", "three toys", "a toy beside a toy"),
            truth=lambda drawing: (
                ("a pair",) if drawing.other is not None else (("one", "two", "three")[drawing.count - 1],)
            ),
            seen=lambda drawing: drawing.style.name in ("photo", "watercolor", "sketch"),
        ),
    )
}
"""By name, in the order of the tables."""


def targets(drawings: Sequence[Drawing], attribute: Attribute) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The target probabilities [drawings, answers] and whether the answer is visible [drawings].

    Several true answers have equal probabilities. The row of a drawing without a visible answer is 0.
    """
    shares = np.zeros((len(drawings), len(attribute.answers)), np.float32)
    seen = np.zeros(len(drawings), bool)
    for row, drawing in enumerate(drawings):
        seen[row] = attribute.seen(drawing)
        truth = attribute.truth(drawing)
        for answer in truth if seen[row] else ():
            shares[row, attribute.answers.index(answer)] += 1 / len(truth)
    return shares, seen
