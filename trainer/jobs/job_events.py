"""Notifies this process's watchers and callbacks of changes to jobs."""

import asyncio
from collections.abc import Callable

from pseudoword.trainer.v1 import resources_pb2

from rpc.watchers import Watchers, wait_for
from trainer.jobs.preview_throttle import PreviewThrottle

# What watchers of a running job receive besides its state.
News = resources_pb2.Progress | resources_pb2.JobEvent.Preview


class JobEvents:
    """Lives on the server's event loop. Keeps the newest progress and preview of each running job."""

    def __init__(self) -> None:
        self.watchers = Watchers()
        self.previews = PreviewThrottle()
        self._progress: dict[str, resources_pb2.Progress] = {}
        self._newest_preview: dict[str, resources_pb2.JobEvent.Preview] = {}
        self._work = asyncio.Event()
        self._on_move: list[Callable[[str], None]] = []
        self._on_own_change: list[Callable[[str], None]] = []
        self._on_own_report: list[Callable[[str, int, News], None]] = []

    # Progress and previews of running jobs

    def show(self, name: str, news: News) -> None:
        """Stores the newest progress or preview of a running job and notifies its watchers."""
        if isinstance(news, resources_pb2.Progress):
            self._progress[name] = news
        else:
            self._newest_preview[name] = news
        self.watchers.notify(name)

    def report(self, name: str, attempt: int, news: News) -> None:
        """As `show`, for an attempt of this process; the callbacks that pass it on to other processes are called
        too."""
        self.show(name, news)
        for callback in self._on_own_report:
            callback(name, attempt, news)

    def progress(self, name: str) -> resources_pb2.Progress | None:
        """The newest progress of a running job."""
        return self._progress.get(name)

    def preview(self, name: str) -> resources_pb2.JobEvent.Preview | None:
        """The newest preview of a running job."""
        return self._newest_preview.get(name)

    def forget(self, name: str) -> None:
        """Drops the progress and preview of an attempt that is over; the job's row has the final progress."""
        self._progress.pop(name, None)
        self._newest_preview.pop(name, None)

    # Changes of jobs

    def changed(self, name: str, *, moved: bool, here: bool = False) -> None:
        """Notifies of a changed job or picture. `moved`: its state has changed and the view shows it; `here`: this
        process has changed it."""
        self._work.set()
        self.watchers.notify(name)
        for callback in self._on_move if moved else ():
            callback(name)
        for callback in self._on_own_change if here else ():
            callback(name)

    def on_move(self, callback: Callable[[str], None]) -> None:
        """Calls `callback` with the name of every job whose state has changed, once the view shows it."""
        self._on_move.append(callback)

    def on_own_change(self, callback: Callable[[str], None]) -> None:
        """Calls `callback` with the name of every job that this process has changed."""
        self._on_own_change.append(callback)

    def on_own_report(self, callback: Callable[[str, int, News], None]) -> None:
        """Calls `callback` with the arguments of each call of `report`."""
        self._on_own_report.append(callback)

    # Work for the worker and the dispatcher

    async def wait_for_work(self, timeout_s: float = 5.0) -> None:
        """Returns when `take_work` may be true, at the latest after `timeout_s`."""
        await wait_for(self._work, timeout_s)
        # A commit whose outcome was unknown may have succeeded without a notification.
        self._work.set()

    def take_work(self) -> bool:
        """Whether a job may have been queued, or may have changed, since the last call."""
        waiting = self._work.is_set()
        self._work.clear()
        return waiting

    def wake(self) -> None:
        """Makes `wait_for_work` return."""
        self._work.set()
