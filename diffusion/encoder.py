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
    word begins. A word's positions hold a filler whose embedding is replaced. `weights` has one number for each id, or
    is empty when all weigh 1.
    """

    ids: Sequence[int]
    used: int
    places: Sequence[tuple[WordRef, int]]
    weights: Sequence[float] = ()


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
        if used > self._length:
            raise PromptTooLong(used, self._length)
        padding = self._length - used
        return Tokens(
            ids=ids + [tokenizer.pad_token_id] * padding,
            used=used,
            places=places,
            weights=[*weights, *[1.0] * (1 + padding)] if prompt.weights else (),
        )

    def encode(
        self, prompts: Sequence[Prompt], vectors: Mapping[WordRef, torch.Tensor], *, clip_skip: int = 0
    ) -> torch.Tensor:
        """Hidden states [prompts, length, dims] of the encoder's last layer but `clip_skip`, normalised as the last.

        `vectors` holds [n, dims] for each word; a gradient finds its way back to them. The last bits of a prompt's
        states may depend on how many share the batch. A weighted position is moved from the empty prompt's state, which
        weighs 0, through its own, which weighs 1. Raises PromptTooLong.
        """
        counts = {ref: len(tensor) for ref, tensor in vectors.items()}
        tokens = [self.tokenize(prompt, counts) for prompt in prompts]
        hidden = self._hidden(tokens, vectors, clip_skip)
        if not any(one.weights for one in tokens):
            return hidden
        weights = torch.tensor(
            [one.weights or [1.0] * self._length for one in tokens], device=hidden.device, dtype=hidden.dtype
        )[..., None]
        empty = self._hidden([self.tokenize(Prompt(()), {})], {}, clip_skip)
        # Not lerp for weights of 1: those positions stay as they are to the last bit.
        return torch.where(weights == 1, hidden, empty + (hidden - empty) * weights)

    def _hidden(
        self, tokens: Sequence[Tokens], vectors: Mapping[WordRef, torch.Tensor], clip_skip: int
    ) -> torch.Tensor:
        placements = [
            Placement(row=row, position=position, vectors=vectors[ref])
            for row, one in enumerate(tokens)
            for ref, position in one.places
        ]
        model = self._model
        ids = torch.tensor([one.ids for one in tokens], device=model.device)
        mask = None
        if self._masked:
            rows = [[1] * one.used + [0] * (self._length - one.used) for one in tokens]
            mask = torch.tensor(rows, device=model.device)
        with model.embedding.placed(placements):
            states = model.text_encoder(ids, attention_mask=mask, output_hidden_states=clip_skip > 0)
        if clip_skip == 0:
            last: torch.Tensor = states.last_hidden_state
            return last
        kept: torch.Tensor = model.text_encoder.final_layer_norm(states.hidden_states[-(clip_skip + 1)])
        return kept
