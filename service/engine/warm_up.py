"""Warms the model up and measures the time of denoiser calls."""

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
# Rows of the timed calls; stops after the first number of rows whose calls take longer than _LONGEST_CALL_S.
_ROWS = (1, 2, 4, 8, 16, 32)
_LONGEST_CALL_S = 0.5
_CALLS = 3


def warm_up(model: BaseModel, encoder: PromptEncoder, scheduler: Scheduler) -> None:
    """Makes calls of increasing numbers of rows, then decodes one picture. The first call of each size is not timed;
    the fastest of the next three becomes the initial value of the scheduler's cost model. Raises the model's errors."""
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
            if seconds > _LONGEST_CALL_S:
                break
        scheduler.costs.observe(shape, rows, seconds)
        if seconds > _LONGEST_CALL_S:
            break
    decode.decode(model, pictures[0].latents)
    times = {str(rows): round(seconds, 5) for rows, seconds in scheduler.costs.table(shape).items()}
    _logger.info("model is warm", seconds_by_rows=times)
