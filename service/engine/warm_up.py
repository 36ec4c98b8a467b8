"""Warms the model up and measures what a call of the denoiser costs."""

import time
from math import inf

import structlog

from diffusion import decode, denoise
from diffusion.checkpoint import BaseModel
from diffusion.denoise import Denoising
from diffusion.encoder import PromptEncoder
from diffusion.prompt import parse
from service.scheduling.scheduler import Scheduler

_logger = structlog.get_logger(__name__)
# Rows of the calls that are timed; no more rows once a call has taken _LONGEST_S.
_ROWS = (1, 2, 4, 8, 16, 32)
_LONGEST_S = 0.5
_CALLS = 3


def warm_up(model: BaseModel, encoder: PromptEncoder, scheduler: Scheduler) -> None:
    """Makes calls of more and more rows, then decodes one picture. The first call of each size is not counted; the
    quickest of the next three is what the scheduler's cost model begins with. Raises what the model cannot do."""
    shape = height, width = model.spec.sample_shape_px
    embeds = encoder.encode([parse("")], {})
    pictures: list[Denoising] = []
    for rows in _ROWS:
        if rows > scheduler.max_rows:
            break
        pictures = [
            Denoising(
                model,
                embeds=embeds,
                negative=None,
                scheduler="ddim",
                steps=1 + _CALLS,
                guidance=1.0,
                seed=0,
                width=width,
                height=height,
            )
            for _ in range(rows)
        ]
        denoise.step(model, pictures)
        seconds = inf
        for _ in range(_CALLS):
            began = time.monotonic()
            denoise.step(model, pictures)
            seconds = min(seconds, time.monotonic() - began)
            if seconds > _LONGEST_S:
                break
        scheduler.costs.observe(shape, rows, seconds)
        if seconds > _LONGEST_S:
            break
    decode.decode(model, pictures[0].latents)
    times = {str(rows): round(seconds, 5) for rows, seconds in scheduler.costs.table(shape).items()}
    _logger.info("model is warm", seconds_by_rows=times)
