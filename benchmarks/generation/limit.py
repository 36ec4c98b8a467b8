"""An upper limit of throughput: the same work in a bare loop that knows all requests in advance."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from pseudoword.names import WordRef

from benchmarks.generation.workload import DrawRequest
from diffusion import decode, denoise
from diffusion.checkpoint import BaseModel
from diffusion.denoise import Denoising
from diffusion.encoder import PromptEncoder
from diffusion.prompt import parse


@torch.inference_mode()
def draw(model: BaseModel, words: Mapping[str, np.ndarray], workload: Sequence[DrawRequest], rows: int) -> None:
    """Draws all requests, without queue, fairness, streams and files. A call has at most `rows` rows."""
    encoder = PromptEncoder(model)
    tensors = {WordRef(None, name): torch.from_numpy(tensor).to(model.device) for name, tensor in words.items()}
    size = model.spec.sample_size_px
    waiting = list(workload)
    active: list[Denoising] = []
    while waiting or active:
        while waiting and sum(len(one.hidden) for one in active) + 2 <= rows:
            one = waiting.pop(0)
            active.append(
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
        denoise.step(model, active)
        done = [one for one in active if one.done]
        if done:
            decode.decode(model, torch.cat([one.latents for one in done]))
        active = [one for one in active if not one.done]
