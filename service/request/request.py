"""A request in the engine, and its pictures."""

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
    """A prepared request. `deadline` and `arrived` are seconds on the monotonic clock.

    Only the engine's thread changes it, except for `cancelled`: the request's owner sets it when the pictures are no
    longer needed, and the engine reads it before each call.
    """

    params: GenerationParams
    vectors: Mapping[WordRef, torch.Tensor]
    digests: Mapping[WordRef, str] = field(default_factory=dict)  # of the vectors, where known
    mailbox: Mailbox
    init_image: DecodedInitImage | None = None
    records: Sequence[resources_pb2.PictureRecord] = ()  # one for each picture
    deadline: float = inf
    arrived: float = field(default_factory=time.monotonic)
    cancelled: threading.Event = field(default_factory=threading.Event)
    calls_made: int = 0
    progress_sent_at: float = -inf  # seconds on the monotonic clock

    @cached_property
    def work(self) -> Work:
        """The request's cost for the scheduler. A guided picture has two rows, an unconditional and a conditional
        one."""
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
    """One picture of a request that is being drawn."""

    id: int
    request: Request
    index: int
    denoising: Denoising
