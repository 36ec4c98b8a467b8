r"""The common notation for weights in a prompt. Pure.

`(text)` multiplies the weight by 1.1, `[text]` divides it by 1.1, `(text:1.3)` multiplies it by 1.3; brackets nest.
`\(`, `\)`, `\[`, `\]` and `\\` are ordinary characters, and so is an unpaired bracket.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_STEP = 1.1
_PIECE = re.compile(r"\\[()\[\]\\]|:\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*\)|[()\[\]]|[^()\[\]\\:]+|.", re.DOTALL)


@dataclass(frozen=True)
class Weighted:
    """A stretch of text and its weight."""

    text: str
    weight: float


def read_weights(text: str) -> Sequence[Weighted]:
    """`text` without its weight signs, split where the weight changes; neighbours never have the same weight."""
    found: list[Weighted] = []
    opened: list[tuple[str, int]] = []  # bracket, and the number of stretches before it

    def close(bracket: str, factor: float, shown: str) -> None:
        if not opened or opened[-1][0] != bracket:
            found.append(Weighted(shown, 1.0))
            return
        _, start = opened.pop()
        # The opening bracket was kept as a stretch, in case it is never closed: drop it.
        inner = [Weighted(one.text, one.weight * factor) for one in found[start + 1 :]]
        found[start:] = inner

    for piece in _PIECE.finditer(text):
        shown, number = piece[0], piece[1]
        if number is not None:
            if opened and opened[-1][0] == "(":
                close("(", float(number), shown)
            else:
                found.append(Weighted(shown, 1.0))
        elif shown in ("(", "["):
            opened.append((shown, len(found)))
            found.append(Weighted(shown, 1.0))
        elif shown == ")":
            close("(", _STEP, shown)
        elif shown == "]":
            close("[", 1 / _STEP, shown)
        elif len(shown) == 2 and shown[0] == "\\":
            found.append(Weighted(shown[1], 1.0))
        else:
            found.append(Weighted(shown, 1.0))
    return _merged(found)


def _merged(pieces: Sequence[Weighted]) -> Sequence[Weighted]:
    merged: list[Weighted] = []
    for piece in pieces:
        if merged and merged[-1].weight == piece.weight:
            merged[-1] = Weighted(merged[-1].text + piece.text, piece.weight)
        elif piece.text:
            merged.append(piece)
    return merged
