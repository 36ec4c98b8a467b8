"""Waits that a cancel ends at any moment."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from rpc.watchers import raise_if_cancelled, wait_for


async def _wait_as_nats_does(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), 5)  # noqa: TID251
    raise_if_cancelled()


@pytest.mark.parametrize("wait", [wait_for, _wait_as_nats_does])
async def test_cancel_at_the_same_time_as_the_event_is_not_lost(
    wait: Callable[[asyncio.Event], Awaitable[None]],
) -> None:
    async def wait_on() -> None:
        await wait(event)
        await asyncio.Event().wait()

    for turns in range(5):
        event = asyncio.Event()
        task = asyncio.create_task(wait_on())
        await asyncio.sleep(0.01)
        event.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        assert task.cancelled(), turns


async def test_wait_ends_with_the_event_or_the_timeout() -> None:
    event = asyncio.Event()
    await wait_for(event, 0.01)
    event.set()
    await wait_for(event)
