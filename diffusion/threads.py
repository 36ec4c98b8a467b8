"""Short-lived threads for torch on a CPU, so that OpenMP's helper threads do not accumulate."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


async def in_passing(work: Callable[[], Made]) -> Made:
    """Run `work` in a thread that ends afterwards, and return its result: for computations outside the engine's thread.

    torch's OpenMP (libgomp) keeps helper threads for each thread that has computed, as long as that thread lives. Once
    there are more of them than processors, they no longer spin between two operations, and a call of a small model
    takes twice as long. Therefore only one permanent thread of a server computes with torch.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="passing")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, work)
    finally:
        thread.shutdown(wait=False)
