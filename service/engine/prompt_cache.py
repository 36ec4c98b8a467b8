"""Caches the hidden states of prompts for later requests with the same prompt and words."""

import torch

from diffusion.encoder import PromptEncoder
from diffusion.prompt import Prompt
from service.request.request import Request
from service.words.tensor_cache import TensorCache

# 270 prompts of Stable Diffusion 1 in fp32. Requests without a negative prompt share the empty one.
_MAX_BYTES = 64 * 2**20


class PromptCache:
    """A cache of encoded prompts. Owned by the engine's thread."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder
        self._hidden: TensorCache[tuple[Prompt, int, tuple[str | None, ...]]] = TensorCache(_MAX_BYTES)

    def encoded(self, request: Request, prompt: Prompt) -> torch.Tensor:
        """Hidden states [1, length, dims] of `prompt`, one of the request's prompts."""
        clip_skip = request.params.clip_skip
        key = (prompt, clip_skip, tuple(request.digests.get(ref) for ref in prompt.words))
        hidden = self._hidden.get(key)
        if hidden is None:
            hidden = self._encoder.encode([prompt], request.vectors, clip_skip=clip_skip)
            if None not in key[2]:
                self._hidden.put(key, hidden)
        return hidden
