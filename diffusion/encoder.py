"""Encodes prompts with words to the text encoder's hidden states."""

from collections.abc import Mapping, Sequence

import torch
from pseudoword.names import WordRef

from diffusion.checkpoint import BaseModel
from diffusion.prompt import Prompt
from diffusion.tokens import PromptTokenizer, Tokens
from diffusion.words import Placement


class PromptEncoder:
    """Encodes prompts, in training and drawing alike. Does not change the model."""

    def __init__(self, model: BaseModel) -> None:
        self._model = model
        self.tokenizer = PromptTokenizer(model.tokenizer, model.spec.encoders[0].length)
        self._masked = bool(getattr(model.text_encoder.config, "use_attention_mask", False))

    @property
    def vocabulary(self) -> torch.Tensor:
        """The encoder's own rows, [entries, dims]."""
        return self._model.embedding.weight

    def encode(
        self, prompts: Sequence[Prompt], vectors: Mapping[WordRef, torch.Tensor], *, clip_skip: int = 0
    ) -> torch.Tensor:
        """Hidden states [prompts, length, dims] of the encoder's layer `clip_skip` before the last, with the final
        layer norm applied.

        `vectors` has [n, dims] for each word; gradients flow back to them. The last bits of a prompt's states may
        depend on the number of prompts in the batch. A position with weight w has the state
        empty + w * (own - empty), where `empty` is the empty prompt's state. Raises PromptTooLong.
        """
        counts = {ref: len(tensor) for ref, tensor in vectors.items()}
        tokens = [self.tokenizer.tokenize(prompt, counts) for prompt in prompts]
        hidden = self._hidden(tokens, vectors, clip_skip)
        if not any(one.weights for one in tokens):
            return hidden
        weights = torch.tensor(
            [one.weights or [1.0] * self.tokenizer.length for one in tokens], device=hidden.device, dtype=hidden.dtype
        )[..., None]
        empty = self._hidden([self.tokenizer.tokenize(Prompt(()), {})], {}, clip_skip)
        # Positions with weight 1 are not interpolated: they keep their bits.
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
            rows = [[1] * one.used + [0] * (self.tokenizer.length - one.used) for one in tokens]
            mask = torch.tensor(rows, device=model.device)
        with model.embedding.placed(placements):
            states = model.text_encoder(ids, attention_mask=mask, output_hidden_states=clip_skip > 0)
        if clip_skip == 0:
            last: torch.Tensor = states.last_hidden_state
            return last
        kept: torch.Tensor = model.text_encoder.final_layer_norm(states.hidden_states[-(clip_skip + 1)])
        return kept
