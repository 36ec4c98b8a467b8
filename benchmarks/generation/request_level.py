"""A Generation server that batches whole requests: the pictures of a call stay together until all of them are finished,
and no picture joins before. It stands for batching servers that cannot add requests between two steps.

The comparison favours it: here requests with different schedulers, steps and guidance scales share a batch, which such
servers seldom allow.
"""

from typing import Any

from rpc.app import run
from service.app import Generation
from service.scheduling.scheduler import Scheduler
from service.settings import GenerationSettings


class RequestLevelScheduler(Scheduler):
    """A scheduler that keeps a group until all of its pictures have left."""

    def __init__(self, *arguments: Any, **limits: Any) -> None:
        super().__init__(*arguments, **limits)
        self._group: list[int] = []

    def next_group(self, now: float) -> list[int]:
        self._group = [id for id in self._group if id in self._pictures]
        if not self._group:
            self._group = super().next_group(now)
        return self._group


class RequestLevelGeneration(Generation):
    """The Generation service with this scheduler."""

    scheduler_class = RequestLevelScheduler


if __name__ == "__main__":
    run("generation", RequestLevelGeneration, lambda: GenerationSettings.load("service"))
