"""Looks up the words of the vocabulary that vectors start from. Needs a tokenizer, no weights."""

from collections.abc import Sequence

from diffusion.tokens import PromptTokenizer
from trainer.errors import InitializerUnknown


class InitializerWords:
    """Finds words in one model's vocabulary."""

    def __init__(self, tokenizer: PromptTokenizer) -> None:
        self._tokenizer = tokenizer

    def ids(self, words: str) -> list[int]:
        """The ids of the vocabulary's entries for `words`, one for each word. Raises InitializerUnknown for a word
        without a single entry."""
        ids = []
        for word in words.split():
            entry = self._tokenizer.entry(word)
            if entry is None:
                raise InitializerUnknown(
                    f"the model's vocabulary has no single entry for {word[:64]!r}: start from a plainer word, or leave"
                    " the start out",
                    word=word[:64],
                )
            ids.append(entry)
        return ids

    def first_of(self, candidates: Sequence[str]) -> str:
        """The first of `candidates` that the vocabulary has. Raises InitializerUnknown if it has none of them."""
        for word in candidates[:-1]:
            try:
                self.ids(word)
            except InitializerUnknown:
                continue
            return word
        self.ids(candidates[-1])
        return candidates[-1]
