"""Waiting: for a store that is away, and for news."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from storage.errors import Closed, StorageError, StoreReplaced

T = TypeVar("T")

_logger = structlog.get_logger(__name__)


async def patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Tries `work` again for as long as the store is away. Raises everything else, StoreReplaced too."""
    retrying = AsyncRetrying(
        retry=retry_if_exception(_passes),
        wait=wait_random_exponential(multiplier=0.2, max=10),
        before_sleep=_log_retry,
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            return await work()
    raise AssertionError("unreachable: the last error is raised again")


async def heard(event: asyncio.Event, longest_s: float = 5.0) -> None:
    """Returns when `event` is set, and after `longest_s` anyway."""
    with suppress(TimeoutError):
        async with asyncio.timeout(longest_s):
            await event.wait()


def heed_cancel() -> None:
    """Raises CancelledError in a task that was cancelled and has not heard of it.

    Once a turn of every endless loop that asks NATS: nats-py waits with asyncio.wait_for, which before Python 3.12
    swallows a cancel that comes in the same moment as the answer.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class Watchers:
    """Who waits for news of a resource. Lives on one event loop."""

    def __init__(self) -> None:
        self._events: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def watching(self, name: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever there may be news of `name`; clear it before you look."""
        event = asyncio.Event()
        self._events.setdefault(name, set()).add(event)
        try:
            yield event
        finally:
            self._events[name].discard(event)
            if not self._events[name]:
                del self._events[name]

    def stir(self, name: str) -> None:
        """There may be news of `name`."""
        for event in self._events.get(name, ()):
            event.set()


def _passes(error: BaseException) -> bool:
    return isinstance(error, StorageError) and error.retry and not isinstance(error, Closed | StoreReplaced)


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    _logger.warning("the store is tried again", attempt=state.attempt_number, error=str(error))
