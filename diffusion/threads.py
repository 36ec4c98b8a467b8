"""Which threads compute with torch on a CPU, so that the processors wait for nobody."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


async def in_passing(work: Callable[[], Made]) -> Made:
    """What `work` returns, done in a thread that ends with it: for what computes before the engine's own thread does.

    torch's OpenMP (libgomp) keeps helpers for each thread that has computed, for as long as that thread lives. Once
    there are more of them than processors, none spins any more between two operations, and a call of a small model
    takes twice as long: so one thread of a server computes, and no other one that stays.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="passing")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, work)
    finally:
        thread.shutdown(wait=False)
