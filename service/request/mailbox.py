"""Passes a request's events from the engine's thread to its response stream."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """`call` of the request's `calls` denoiser calls are made."""

    call: int
    calls: int


@dataclass(frozen=True, kw_only=True)
class Previewed:
    """Picture `index` after `call` calls; `pixels` is uint8 [height, width, 3], smaller than the picture."""

    index: int
    call: int
    pixels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Picture `index` is finished; `pixels` is uint8 [height, width, 3], black if it is `withheld`. `flagged`: the
    safety checker has flagged it."""

    index: int
    pixels: np.ndarray
    flagged: bool = False
    withheld: bool = False


@dataclass(frozen=True, kw_only=True)
class Started:
    """The request's first step begins."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The request has failed with `error`; this is its last event."""

    error: Exception


Event = Started | Stepped | Previewed | Drawn | Failed


class Mailbox:
    """The events of one request. Bounded even if the reader is slow: at most the request's count of finished pictures,
    and of progress and of each picture's previews only the newest."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: deque[Event] = deque()
        self._available = asyncio.Event()

    def post(self, event: Event) -> None:
        """Called by the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._add, event)
        except RuntimeError:
            # The loop is closed: the server has stopped, and the mailbox has no reader.
            return

    def _add(self, event: Event) -> None:
        if isinstance(event, Stepped | Previewed):
            for older in self._events:
                same_picture = isinstance(event, Stepped) or getattr(older, "index", None) == event.index
                if type(older) is type(event) and same_picture:
                    self._events.remove(older)
                    break
        self._events.append(event)
        self._available.set()

    async def events(self) -> AsyncIterator[Event]:
        """Yields the events as they arrive. Raises the error of a Failed; never ends otherwise."""
        while True:
            await self._available.wait()
            while self._events:
                event = self._events.popleft()
                if isinstance(event, Failed):
                    raise event.error
                yield event
            self._available.clear()
