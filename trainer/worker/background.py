"""Supervised asyncio tasks that run beside the worker's ticks."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

_logger = structlog.get_logger(__name__)


class BackgroundTasks:
    """The worker's tasks. An unexpected error in one ends the server, which recovers from the log after its restart.

    At stop(), droppable tasks (preparing, publishing) are cancelled: the next server continues their work. Required
    tasks (the last writes to log and store about an attempt) are awaited.
    """

    def __init__(self, on_crash: Callable[[], None]) -> None:
        """`on_crash` is called when a task has failed; `crash` is then its error."""
        self._on_crash = on_crash
        self.crash: BaseException | None = None
        self._droppable: set[asyncio.Task[None]] = set()
        self._required: set[asyncio.Task[None]] = set()

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts a task that its caller owns and stops."""
        task = asyncio.create_task(work)

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                _logger.critical("the worker has died", exc_info=error)
                self.crash = error
                self._on_crash()

        task.add_done_callback(ended)
        return task

    def drop_at_stop(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts a droppable task."""
        return self._add(work, self._droppable)

    def finish_at_stop(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts a required task."""
        return self._add(work, self._required)

    async def stop(self) -> None:
        """Awaits the required tasks, then cancels the droppable ones."""
        while self._required:
            await asyncio.wait(self._required)
        for task in self._droppable:
            task.cancel()
        if self._droppable:
            await asyncio.wait(self._droppable)

    def _add(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        task = self.run(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task
