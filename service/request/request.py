"""A request on its way through the engine."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import inf

import torch
from pseudoword.names import WordRef

from diffusion.denoise import DecodedInitImage, Denoising
from service.request.mailbox import Mailbox
from service.request.params import GenerationParams
from service.scheduling.scheduler import Ask


@dataclass(kw_only=True, eq=False)
class Request:
    """What is drawn for whom. `deadline` and `arrived` are seconds on the monotonic clock.

    Only the engine's thread changes it, except for `gone`, which whoever no longer wants the pictures sets, and which
    the engine reads before each call.
    """

    drawing: GenerationParams
    vectors: Mapping[WordRef, torch.Tensor]
    digests: Mapping[WordRef, str] = field(default_factory=dict)  # of the vectors, as far as they are known
    mailbox: Mailbox
    beginning: DecodedInitImage | None = None
    deadline: float = inf
    arrived: float = field(default_factory=time.monotonic)
    gone: threading.Event = field(default_factory=threading.Event)
    calls_made: int = 0
    told_at: float = -inf  # when it last heard how far it is

    @cached_property
    def ask(self) -> Ask:
        """What admission needs to know of it; rows of a picture are the unconditional one and the conditional one."""
        drawing = self.drawing
        return Ask(
            tenant=drawing.tenant,
            shape=(drawing.height, drawing.width),
            rows=2 if drawing.guided else 1,
            calls=drawing.calls,
            pictures=drawing.count,
            exact=drawing.exact,
            priority=drawing.priority,
            deadline=self.deadline,
            arrived=self.arrived,
        )


@dataclass(kw_only=True, eq=False)
class Picture:
    """One picture of a request while it is drawn."""

    id: int
    request: Request
    index: int
    denoising: Denoising
