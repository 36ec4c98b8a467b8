"""A request on its way through the engine."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf

import torch
from pseudoword.generation.v1 import resources_pb2
from pseudoword.names import WordRef

from diffusion.denoise import DecodedInitImage, Denoising
from service.request.mailbox import Mailbox
from service.request.params import GenerationParams
from service.scheduling.scheduler import Work


@dataclass(kw_only=True, eq=False)
class Request:
    """What is drawn for whom. `deadline` and `arrived` are seconds on the monotonic clock.

    Only the engine's thread changes it, except for `gone`, which whoever no longer wants the pictures sets, and which
    the engine reads before each call.
    """

    params: GenerationParams
    vectors: Mapping[WordRef, torch.Tensor]
    digests: Mapping[WordRef, str] = field(default_factory=dict)  # of the vectors, as far as they are known
    mailbox: Mailbox
    init_image: DecodedInitImage | None = None
    records: Sequence[resources_pb2.PictureRecord] = ()  # of each picture
    deadline: float = inf
    arrived: float = field(default_factory=time.monotonic)
    gone: threading.Event = field(default_factory=threading.Event)
    calls_made: int = 0
    told_at: float = -inf  # when it last heard how far it is

    @cached_property
    def work(self) -> Work:
        """What admission needs to know of it; rows of a picture are the unconditional one and the conditional one."""
        params = self.params
        return Work(
            tenant=params.tenant,
            shape=(params.height, params.width),
            rows=2 if params.guided else 1,
            calls=params.calls,
            pictures=params.count,
            exact=params.exact,
            priority=params.priority,
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
