"""Work that goes on beside the worker's ticks, as tasks that are not lost sight of."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

_logger = structlog.get_logger(__name__)


class BackgroundTasks:
    """The worker's tasks. One that dies ends the server: after its restart it finds everything in the log.

    `droppable` tasks (preparing, publishing) may be cancelled: the next server goes on where they stop. `required`
    ones (what the log and the store must still be told about an attempt) are waited for.
    """

    def __init__(self, on_crash: Callable[[], None]) -> None:
        """`on_crash` is called once a task has died; `crash` says of what."""
        self._on_crash = on_crash
        self.crash: BaseException | None = None
        self._droppable: set[asyncio.Task[None]] = set()
        self._required: set[asyncio.Task[None]] = set()

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts a task whose owner keeps it."""
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
        """Waits for the required tasks and cancels the droppable ones."""
        while self._required:
            await asyncio.wait(self._required)
        for task in self._droppable:
            task.cancel()
        if self._droppable:
            await asyncio.wait(self._droppable)

    def _add(self, work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        task = self.run(work)
        among.add(task)
        task.add_done_callback(among.discard)
        return task
