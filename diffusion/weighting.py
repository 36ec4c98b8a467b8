r"""The common notation for weights in a prompt. Pure.

`(text)` multiplies the weight by 1.1, `[text]` divides it by 1.1, `(text:1.3)` multiplies it by 1.3; brackets nest. A
number may have a sign, and a comma instead of a point: `(text:-0,5)`.
`\(`, `\)`, `\[`, `\]` and `\\` are ordinary characters, and so is an unpaired bracket.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from diffusion.errors import WeightInvalid

_STEP = 1.1
_OPENING = {")": "(", "]": "["}
_MINUS = "-−–"  # the keyboard's, the typographic one, and the dash that text editors make of it
_NUMBER = re.compile(rf"[{_MINUS}+]?([0-9]+([.,][0-9]*)?|[.,][0-9]+)")
# What a person would take for a number: signs, digits and what stands between them.
_NUMBER_LIKE = rf"(?:[{_MINUS}+]+\s*)?(?:[0-9.,][{_MINUS}+0-9.,eExX%]*|(?i:nan|inf|infinity))"
_PIECE = re.compile(
    rf"\\[()\[\]\\]|:\s*(?P<number>{_NUMBER_LIKE})\s*(?P<end>[)\]]|\Z)|[()\[\]]|[^()\[\]\\:]+|.", re.DOTALL
)


@dataclass(frozen=True)
class Weighted:
    """A stretch of text and its weight."""

    text: str
    weight: float


def read_weights(text: str) -> Sequence[Weighted]:
    """`text` without its weight signs, split where the weight changes; neighbours never have the same weight. Raises
    WeightInvalid for what looks like a weight and is not one."""
    pieces = list(_PIECE.finditer(text))
    closed_by = _pairs(pieces)
    factors = [1.0]  # the weight in each open bracket, the outermost first
    closing = set(closed_by.values())
    found: list[Weighted] = []
    for number, piece in enumerate(pieces):
        if number in closed_by:
            factors.append(factors[-1] * _factor(pieces[closed_by[number]]))
        elif number in closing:
            factors.pop()
        else:
            shown = piece[0]
            escaped = len(shown) == 2 and shown[0] == "\\"
            found.append(Weighted(shown[1] if escaped else shown, factors[-1]))
    runs = groupby(found, key=lambda one: one.weight)
    return [Weighted("".join(one.text for one in run), weight) for weight, run in runs]


def _pairs(pieces: Sequence[re.Match[str]]) -> Mapping[int, int]:
    """The number of the closing piece of each bracket that is closed, by the number of the opening piece."""
    opened: list[int] = []
    closed_by = {}
    for number, piece in enumerate(pieces):
        if piece[0] in ("(", "["):
            opened.append(number)
            continue
        end = piece["end"] if piece["number"] is not None else piece[0]
        pair = bool(opened) and pieces[opened[-1]][0] == _OPENING.get(end or "")
        if piece["number"] is not None and (opened or end):
            _check_weight(piece, pair)
        if pair:
            closed_by[opened.pop()] = number
    return closed_by


def _check_weight(piece: re.Match[str], pair: bool) -> None:
    at, shown = piece.start() + 1, piece[0]
    if piece["end"] == "]":
        raise WeightInvalid(at, shown, "square brackets take no number: write (text:0.8)")
    if not pair:
        missing = "closing bracket after" if not piece["end"] else "opening bracket for"
        raise WeightInvalid(at, shown, f"there is no {missing} this weight: write (text:1.3)")
    if not _NUMBER.fullmatch(piece["number"]):
        raise WeightInvalid(at, shown, "a weight is written as in (text:1.3) or (text:-0.5)")


def _factor(closing: re.Match[str]) -> float:
    """The number by which a pair of brackets multiplies the weight."""
    if closing["number"] is None:
        return _STEP if closing[0] == ")" else 1 / _STEP
    number = closing["number"].replace(",", ".")
    return float(number if number[0] not in _MINUS else f"-{number[1:]}")
