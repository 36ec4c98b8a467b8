"""The limit: the same work in a bare loop, all requests known from the start, calls of the best number of rows."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from pseudoword.names import WordRef

from benchmarks.generation.workload import Asked
from diffusion import decode, denoise
from diffusion.checkpoint import BaseModel
from diffusion.denoise import Denoising
from diffusion.encoder import PromptEncoder
from diffusion.prompt import parse


@torch.inference_mode()
def draw(model: BaseModel, words: Mapping[str, np.ndarray], asked: Sequence[Asked], rows: int) -> None:
    """Draws all; no queue, no fairness, no streams, no files. `rows` is the most of one call."""
    encoder = PromptEncoder(model)
    tensors = {WordRef(None, name): torch.from_numpy(tensor).to(model.device) for name, tensor in words.items()}
    size = model.spec.sample_size_px
    waiting = list(asked)
    flying: list[Denoising] = []
    while waiting or flying:
        while waiting and sum(len(one.hidden) for one in flying) + 2 <= rows:
            one = waiting.pop(0)
            flying.append(
                Denoising(
                    model,
                    embeds=encoder.encode([parse(one.prompt)], tensors),
                    negative=encoder.encode([parse("")], {}) if one.guidance > 1 else None,
                    scheduler=one.scheduler,
                    steps=one.steps,
                    guidance=one.guidance,
                    seed=one.seed,
                    width=size,
                    height=size,
                )
            )
        denoise.step(model, flying)
        done = [one for one in flying if one.done]
        if done:
            decode.decode(model, torch.cat([one.latents for one in done]))
        flying = [one for one in flying if not one.done]
