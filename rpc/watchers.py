"""Waiting for news: of a resource, of an event, of the server's end."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Watchers:
    """The calls that wait for news of a resource. Lives on one event loop."""

    def __init__(self) -> None:
        self._events: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def watching(self, name: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever there may be news of `name`; clear it before you read the resource."""
        event = asyncio.Event()
        self._events.setdefault(name, set()).add(event)
        try:
            yield event
        finally:
            self._events[name].discard(event)
            if not self._events[name]:
                del self._events[name]

    def notify(self, name: str) -> None:
        """There may be news of `name`."""
        for event in self._events.get(name, ()):
            event.set()


async def wait_for(event: asyncio.Event, timeout_s: float = 5.0) -> None:
    """Returns when `event` is set, and after `timeout_s` in any case."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


async def wait_for_news(news: asyncio.Event, draining: asyncio.Event, timeout_s: float = 5.0) -> None:
    """Returns when there may be news, when the server drains, and after `timeout_s` in any case."""
    waits = [asyncio.ensure_future(wait_for(news, timeout_s)), asyncio.ensure_future(draining.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def raise_if_cancelled() -> None:
    """Raises CancelledError in a task that was cancelled and has not seen it.

    Every endless loop that waits for NATS calls this once a turn: nats-py waits with asyncio.wait_for, which before
    Python 3.12 swallows a cancellation that comes in the same moment as the answer.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
