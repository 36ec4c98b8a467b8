"""Tokenises prompts. Needs a tokenizer and the encoder's length, no weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pseudoword.names import WordRef

from diffusion.errors import PromptTooLong
from diffusion.prompt import Prompt


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A tokenised prompt.

    `ids` has one id for each position of the encoder; the first `used` are not padding; `places` has each word and its
    first position. A word's positions hold a filler token, whose embedding is replaced. `weights` has one number for
    each id, or is empty when all weights are 1.
    """

    ids: Sequence[int]
    used: int
    places: Sequence[tuple[WordRef, int]]
    weights: Sequence[float] = ()


class PromptTokenizer:
    """Tokenises prompts, in training, drawing and validation alike."""

    def __init__(self, tokenizer: Any, length: int) -> None:
        """`tokenizer` is transformers'; the encoder has `length` positions, start and end included."""
        self._tokenizer = tokenizer
        self.length = length

    def tokenize(self, prompt: Prompt, vectors: Mapping[WordRef, int]) -> Tokens:
        """Token ids of a prompt in which each word takes as many positions as it has vectors.

        The text between words is tokenised separately, as a tokenizer does around an added token. Raises PromptTooLong;
        KeyError for a word that is missing in `vectors`.
        """
        tokenizer = self._tokenizer
        ids: list[int] = [tokenizer.bos_token_id]
        places: list[tuple[WordRef, int]] = []
        weights = [1.0]
        for part, weight in zip(prompt.parts, prompt.weights or [1.0] * len(prompt.parts), strict=True):
            if isinstance(part, WordRef):
                places.append((part, len(ids)))
                # The filler is not the end token, because the encoder finds its pooled output by that.
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
        """The vocabulary's single entry for `word`; None when it takes several entries, or is a special token."""
        pieces = self._tokenizer(word, add_special_tokens=False).input_ids
        if len(pieces) != 1 or pieces[0] in self._tokenizer.all_special_ids:
            return None
        return int(pieces[0])

    def word(self, entry: int) -> str | None:
        """The whole word of `entry`; None for a piece of a word or a byte, which would not be tokenised to `entry`
        again."""
        word: str = self._tokenizer.convert_ids_to_tokens(entry).removesuffix("</w>")
        return word if word.isalpha() and self.entry(word) == entry else None
