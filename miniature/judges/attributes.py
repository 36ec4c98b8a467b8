"""What a drawing can be asked for, which answers there are, and where the answer can be seen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miniature.style import STYLE_NAMES
from miniature.world import ACCESSORIES, COLOURS, KINDS, PATTERNS, SCENES, Colour, Drawing

_NONE = "none"
_TOLD_APART = 90  # distance of two colours in RGB, 0 to 255 a channel, from which a pattern is seen


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One question about a drawing."""

    name: str
    answers: tuple[str, ...]
    sentences: tuple[str, ...]
    """What says each answer, for a judge that reads."""
    truth: Callable[[Drawing], tuple[str, ...]]
    """The answer, or the answers for each of two toys, or of two that cannot be told apart."""
    seen: Callable[[Drawing], bool]
    """Whether the answer can be seen."""


def _far(one: Colour, other: Colour) -> bool:
    return float(np.linalg.norm(np.subtract(one.rgb, other.rgb))) >= _TOLD_APART


def _colours(drawing: Drawing) -> tuple[str, ...]:
    """A striped or checkered toy is as much of its second colour as of the one that captions name."""
    return tuple(
        colour.name
        for toy in drawing.toys
        for colour in ((toy.colour, toy.second) if toy.pattern in ("striped", "checkered") else (toy.colour,))
    )


def _single(drawing: Drawing) -> bool:
    return drawing.other is None and drawing.count == 1


def _accessory_seen(drawing: Drawing) -> bool:
    """Small ones drown in strokes and blocks; black glasses and a red scarf, on a toy of that colour."""
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
"""By name, in the order in which tables show them."""


def targets(drawings: Sequence[Drawing], attribute: Attribute) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Shares [drawings, answers] of the true answers, each row's sum 1, and whether each can be seen [drawings].

    Several different answers share equally.
    """
    shares = np.zeros((len(drawings), len(attribute.answers)), np.float32)
    seen = np.zeros(len(drawings), bool)
    for row, drawing in enumerate(drawings):
        seen[row] = attribute.seen(drawing)
        truth = attribute.truth(drawing)
        for answer in truth if seen[row] else ():
            shares[row, attribute.answers.index(answer)] += 1 / len(truth)
    return shares, seen
