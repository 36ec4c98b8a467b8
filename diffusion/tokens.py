"""From a prompt to token ids. Needs a tokenizer and its length, no weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pseudoword.names import WordRef

from diffusion.errors import PromptTooLong
from diffusion.prompt import Prompt


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A prompt as the encoder reads it.

    `ids` are as many as the encoder has positions; `used` of them come before the padding; `places` tells where each
    word begins. A word's positions hold a filler whose embedding is replaced. `weights` has one number for each id, or
    is empty when all weigh 1.
    """

    ids: Sequence[int]
    used: int
    places: Sequence[tuple[WordRef, int]]
    weights: Sequence[float] = ()


class PromptTokenizer:
    """One way to read a prompt, for training, drawing and validation."""

    def __init__(self, tokenizer: Any, length: int) -> None:
        """`tokenizer` is transformers'; the encoder has `length` positions, start and end included."""
        self._tokenizer = tokenizer
        self.length = length

    def tokenize(self, prompt: Prompt, vectors: Mapping[WordRef, int]) -> Tokens:
        """Token ids of a prompt in which each word takes as many positions as it has vectors.

        The text between words is tokenised by itself, as a tokenizer does around a token that was added to it. Raises
        PromptTooLong; KeyError for a word that `vectors` lacks.
        """
        tokenizer = self._tokenizer
        ids: list[int] = [tokenizer.bos_token_id]
        places: list[tuple[WordRef, int]] = []
        weights = [1.0]
        for part, weight in zip(prompt.parts, prompt.weights or [1.0] * len(prompt.parts), strict=True):
            if isinstance(part, WordRef):
                places.append((part, len(ids)))
                # Not the end token, by which the pooled output is found.
                ids += [tokenizer.bos_token_id] * vectors[part]
            else:
                ids += tokenizer(part, add_special_tokens=False, verbose=False).input_ids
            weights += [weight] * (len(ids) - len(weights))
        ids.append(tokenizer.eos_token_id)
        used = len(ids)
        if used > self.length:
            raise PromptTooLong(used, self.length)
        padding = self.length - used
        return Tokens(
            ids=ids + [tokenizer.pad_token_id] * padding,
            used=used,
            places=places,
            weights=[*weights, *[1.0] * (1 + padding)] if prompt.weights else (),
        )

    def entry(self, word: str) -> int | None:
        """The vocabulary's single entry for `word`; None where it takes several, or is a special token."""
        pieces = self._tokenizer(word, add_special_tokens=False).input_ids
        if len(pieces) != 1 or pieces[0] in self._tokenizer.all_special_ids:
            return None
        return int(pieces[0])

    def word(self, entry: int) -> str | None:
        """The whole word that `entry` stands for; None for a piece of a word or a byte, which is not read back as
        itself."""
        word: str = self._tokenizer.convert_ids_to_tokens(entry).removesuffix("</w>")
        return word if word.isalpha() and self.entry(word) == entry else None
