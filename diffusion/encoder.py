"""From prompts with words in them to the text encoder's hidden states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pseudoword.names import WordRef

from diffusion.checkpoint import BaseModel
from diffusion.errors import PromptTooLong
from diffusion.prompt import Prompt
from diffusion.words import Placement


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A prompt as the encoder reads it.

    `ids` are as many as the encoder has positions; `used` of them come before the padding; `places` tells where each
    word begins. A word's positions hold a filler whose embedding is replaced.
    """

    ids: Sequence[int]
    used: int
    places: Sequence[tuple[WordRef, int]]


class PromptEncoder:
    """One way to read a prompt, for training and for drawing. Changes nothing in the model."""

    def __init__(self, model: BaseModel) -> None:
        self._model = model
        self._tokenizer = model.tokenizer
        self._length = model.spec.encoders[0].length
        self._masked = bool(getattr(model.text_encoder.config, "use_attention_mask", False))

    @property
    def vocabulary(self) -> torch.Tensor:
        """The encoder's own rows, [entries, dims]."""
        return self._model.embedding.weight

    def tokenize(self, prompt: Prompt, vectors: Mapping[WordRef, int]) -> Tokens:
        """Token ids of a prompt in which each word takes as many positions as it has vectors.

        The text between words is tokenised by itself, as a tokenizer does around a token that was added to it. Raises
        PromptTooLong; KeyError for a word that `vectors` lacks.
        """
        tokenizer = self._tokenizer
        ids: list[int] = [tokenizer.bos_token_id]
        places: list[tuple[WordRef, int]] = []
        for part in prompt.parts:
            if isinstance(part, WordRef):
                places.append((part, len(ids)))
                # Not the end token, by which the pooled output is found.
                ids += [tokenizer.bos_token_id] * vectors[part]
            else:
                ids += tokenizer(part, add_special_tokens=False, verbose=False).input_ids
        ids.append(tokenizer.eos_token_id)
        used = len(ids)
        if used > self._length:
            raise PromptTooLong(used, self._length)
        return Tokens(ids=ids + [tokenizer.pad_token_id] * (self._length - used), used=used, places=places)

    def encode(self, prompts: Sequence[Prompt], vectors: Mapping[WordRef, torch.Tensor]) -> torch.Tensor:
        """Hidden states [prompts, length, dims] of the encoder's last layer.

        `vectors` holds [n, dims] for each word; a gradient finds its way back to them. The last bits of a prompt's
        states may depend on how many share the batch. Raises PromptTooLong.
        """
        counts = {ref: len(tensor) for ref, tensor in vectors.items()}
        tokens = [self.tokenize(prompt, counts) for prompt in prompts]
        placements = [
            Placement(row=row, position=position, vectors=vectors[ref])
            for row, one in enumerate(tokens)
            for ref, position in one.places
        ]
        device = self._model.device
        ids = torch.tensor([one.ids for one in tokens], device=device)
        mask = None
        if self._masked:
            mask = torch.tensor([[1] * one.used + [0] * (self._length - one.used) for one in tokens], device=device)
        with self._model.embedding.placed(placements):
            hidden: torch.Tensor = self._model.text_encoder(ids, attention_mask=mask)[0]
        return hidden
