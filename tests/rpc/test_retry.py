"""Waiting that a cancel ends, in whichever moment it comes."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from rpc.watchers import raise_if_cancelled, wait_for


async def _asked(event: asyncio.Event) -> None:
    # As nats-py asks.
    await asyncio.wait_for(event.wait(), 5)  # noqa: TID251
    raise_if_cancelled()


@pytest.mark.parametrize("wait", [wait_for, _asked])
async def test_a_cancel_together_with_the_news_is_not_lost(wait: Callable[[asyncio.Event], Awaitable[None]]) -> None:
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


async def test_it_ends_with_the_news_or_without() -> None:
    event = asyncio.Event()
    await wait_for(event, 0.01)
    event.set()
    await wait_for(event)
