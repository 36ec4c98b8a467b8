"""From the engine's thread to one request's stream: what happens to its pictures."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """`call` of the request's `calls` are made."""

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
    """Picture `index` is finished; `pixels` is uint8 [height, width, 3], black where it is `withheld`. `flagged`: the
    safety checker objects to it."""

    index: int
    pixels: np.ndarray
    flagged: bool = False
    withheld: bool = False


@dataclass(frozen=True, kw_only=True)
class Started:
    """The request's first step begins."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Nothing more will come."""

    error: Exception


Event = Started | Stepped | Previewed | Drawn | Failed


class Mailbox:
    """Events of one request. Bounded whoever reads slowly: finished pictures are at most the request's count, and of
    progress and previews only the newest are kept."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: deque[Event] = deque()
        self._there = asyncio.Event()

    def post(self, event: Event) -> None:
        """Called by the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._add, event)
        except RuntimeError:
            # The loop has closed: the server has stopped, and nobody reads any more.
            return

    def _add(self, event: Event) -> None:
        if isinstance(event, Stepped | Previewed):
            for older in self._events:
                same_picture = isinstance(event, Stepped) or getattr(older, "index", None) == event.index
                if type(older) is type(event) and same_picture:
                    self._events.remove(older)
                    break
        self._events.append(event)
        self._there.set()

    async def events(self) -> AsyncIterator[Event]:
        """The events as they come. Raises what a Failed carries; ends never by itself."""
        while True:
            await self._there.wait()
            while self._events:
                event = self._events.popleft()
                if isinstance(event, Failed):
                    raise event.error
                yield event
            self._there.clear()
