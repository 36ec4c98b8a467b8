"""Selects the templates that fit into a text encoder with a word in them. Needs a tokenizer, no weights."""

from collections.abc import Sequence
from contextlib import suppress

from pseudoword.names import WordRef

from diffusion.errors import PromptTooLong
from diffusion.prompt import Prompt, parse
from diffusion.tokens import PromptTokenizer
from trainer.training.templates import TEMPLATES

_WORD = WordRef(None, "w")  # placeholder for the word in a length check


class TemplateFitter:
    """Checks templates against the length of one text encoder."""

    def __init__(self, tokenizer: PromptTokenizer) -> None:
        self._tokenizer = tokenizer

    def check_length(self, template: str, vectors: int) -> None:
        """Raises PromptTooLong if a template with a word of `vectors` vectors does not fit the encoder."""
        self._tokenizer.tokenize(sentence(template, _WORD), {_WORD: vectors})

    def fitting(self, templates: Sequence[str], vectors: int) -> list[str]:
        """The templates that fit with a word of `vectors` vectors."""
        fitting = []
        for template in templates:
            with suppress(PromptTooLong):
                self.check_length(template, vectors)
                fitting.append(template)
        return fitting

    def of_pictures(self, recipe: str, captions: Sequence[str], vectors: int) -> list[Sequence[str]]:
        """The templates for each picture: its caption, or if that is empty, all templates of the recipe that fit."""
        usual = self.fitting(TEMPLATES[recipe], vectors) or TEMPLATES[recipe][:1]
        return [[caption] if caption else usual for caption in captions]


def sentence(template: str, word: WordRef) -> Prompt:
    """A template with `word` in the place of its `{}`."""
    before, after = template.split("{}")
    return Prompt((*parse(before).parts, word, *parse(after).parts))
