"""Parses a prompt into text and words. Pure: no torch, no tokenizer."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pseudoword.names import InvalidName, WordRef

from diffusion.weighting import read_weights

_CANDIDATE = re.compile(r"\\<|<([^<>]{1,300})>")


@dataclass(frozen=True)
class Prompt:
    """Text and words, in order. `weights` has one number for each part, or is empty when all weights are 1."""

    parts: tuple[str | WordRef, ...]
    weights: tuple[float, ...] = ()

    @property
    def words(self) -> tuple[WordRef, ...]:
        """The words, each once, in order of their first use."""
        return tuple(dict.fromkeys(part for part in self.parts if isinstance(part, WordRef)))


def parse(text: str, *, weights: bool = False) -> Prompt:
    r"""Parse `<[tenant/]concept[@alias|@n]>` as words; `\<`, and a `<` that does not begin a word, are an ordinary `<`.
    With `weights`, also parse weights such as `(text:1.3)`; see weighting.py. A byte order mark at the start is left
    out: it belongs to the file that the text comes from."""
    text = text.removeprefix("\ufeff")
    if not weights:
        return Prompt(tuple(_joined(_pieces(text))))
    parts: list[str | WordRef] = []
    numbers: list[float] = []
    for stretch in read_weights(text):
        here = tuple(_joined(_pieces(stretch.text)))
        parts += here
        numbers += [stretch.weight] * len(here)
    return Prompt(tuple(parts), tuple(numbers) if any(number != 1 for number in numbers) else ())


def _pieces(text: str) -> Iterator[str | WordRef]:
    end = 0
    for found in _CANDIDATE.finditer(text):
        yield text[end : found.start()]
        end = found.end()
        yield _word(found[1]) or (found[0] if found[1] else "<")
    yield text[end:]


def _word(text: str | None) -> WordRef | None:
    try:
        return WordRef.parse(text) if text else None
    except InvalidName:
        return None


def _joined(pieces: Iterator[str | WordRef]) -> Iterator[str | WordRef]:
    """Join neighbouring texts, so that they are tokenised as they were written; drop empty ones."""
    text = ""
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
            continue
        if text:
            yield text
        text = ""
        yield piece
    if text:
        yield text
