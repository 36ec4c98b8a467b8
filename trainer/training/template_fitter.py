"""Templates with a word in them, as far as a text encoder has room. Needs a tokenizer, no weights."""

from collections.abc import Sequence
from contextlib import suppress

from pseudoword.names import WordRef

from diffusion.errors import PromptTooLong
from diffusion.prompt import Prompt, parse
from diffusion.tokens import PromptTokenizer
from trainer.training.templates import TEMPLATES

_WORD = WordRef(None, "w")  # stands for the word while a length is checked


class TemplateFitter:
    """Says which templates fit one text encoder."""

    def __init__(self, tokenizer: PromptTokenizer) -> None:
        self._tokenizer = tokenizer

    def check_length(self, template: str, vectors: int) -> None:
        """Raises PromptTooLong when a template with a word of so many vectors does not fit the encoder."""
        self._tokenizer.tokenize(sentence(template, _WORD), {_WORD: vectors})

    def fitting(self, templates: Sequence[str], vectors: int) -> list[str]:
        """The templates that fit with a word of so many vectors."""
        found = []
        for template in templates:
            with suppress(PromptTooLong):
                self.check_length(template, vectors)
                found.append(template)
        return found

    def of_pictures(self, recipe: str, captions: Sequence[str], vectors: int) -> list[Sequence[str]]:
        """The templates for each picture: its caption, or where that is empty all of the recipe's that fit."""
        usual = self.fitting(TEMPLATES[recipe], vectors) or TEMPLATES[recipe][:1]
        return [[caption] if caption else usual for caption in captions]


def sentence(template: str, word: WordRef) -> Prompt:
    """A template with `word` in the place of its `{}`."""
    before, after = template.split("{}")
    return Prompt((*parse(before).parts, word, *parse(after).parts))
