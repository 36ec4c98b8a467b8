"""A request on its way through the engine."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

import torch
from pseudoword.names import WordRef

from diffusion.denoise import Beginning, Denoising
from service.drawing import Drawing
from service.mailbox import Mailbox


@dataclass(kw_only=True, eq=False)
class Request:
    """What is drawn for whom. `deadline` and `arrived` are seconds on the monotonic clock.

    Only the engine's thread changes it, except for `gone`, which whoever no longer wants the pictures sets, and which
    the engine reads before each call.
    """

    drawing: Drawing
    vectors: Mapping[WordRef, torch.Tensor]
    mailbox: Mailbox
    beginning: Beginning | None = None
    deadline: float = inf
    arrived: float = field(default_factory=time.monotonic)
    gone: threading.Event = field(default_factory=threading.Event)
    calls_made: int = 0


@dataclass(kw_only=True, eq=False)
class Picture:
    """One picture of a request while it is drawn."""

    id: int
    request: Request
    index: int
    denoising: Denoising

    @property
    def rows_left(self) -> int:
        """Rows of the denoiser that are still to be computed."""
        return (self.denoising.calls - self.denoising.position) * rows(self.request.drawing)


def shape(drawing: Drawing) -> tuple[int, int]:
    """Height and width in pixels: pictures of one shape can share a call of the denoiser."""
    return drawing.height, drawing.width


def rows(drawing: Drawing) -> int:
    """Rows of a picture in one call of the denoiser: the unconditional one and the conditional one."""
    return 2 if drawing.guided else 1
