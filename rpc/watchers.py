"""Waiting for changes of a resource, for an event, and for the server's draining."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Watchers:
    """The calls that wait for changes of a resource. Used on one event loop."""

    def __init__(self) -> None:
        self._events: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def watching(self, name: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the resource `name` may have changed. Clear it before you read the resource."""
        event = asyncio.Event()
        self._events.setdefault(name, set()).add(event)
        try:
            yield event
        finally:
            self._events[name].discard(event)
            if not self._events[name]:
                del self._events[name]

    def notify(self, name: str) -> None:
        """Notify all calls that watch `name`."""
        for event in self._events.get(name, ()):
            event.set()


async def wait_for(event: asyncio.Event, timeout_s: float = 5.0) -> None:
    """Return when `event` is set, at the latest after `timeout_s`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


async def wait_for_news(news: asyncio.Event, draining: asyncio.Event, timeout_s: float = 5.0) -> None:
    """Return when `news` is set, or when the server drains, at the latest after `timeout_s`."""
    waits = [asyncio.ensure_future(wait_for(news, timeout_s)), asyncio.ensure_future(draining.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def raise_if_cancelled() -> None:
    """Raises CancelledError in a task that was cancelled and has not been notified of it.

    Every endless loop that waits for NATS calls this once per iteration: nats-py waits with asyncio.wait_for, which
    before Python 3.12 swallows a cancellation that coincides with the response.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
