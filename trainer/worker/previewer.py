"""Draws previews of a word in training for the watchers of its job."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from pseudoword.names import ConceptName
from pseudoword.trainer.v1 import resources_pb2

from diffusion.pictures import to_png
from trainer.jobs.job_events import JobEvents
from trainer.training.run import Run
from trainer.worker.attempt import Attempt
from trainer.worker.engine import Engine

_logger = structlog.get_logger(__name__)


class Previewer:
    """Previews of the jobs of one worker. Lives on the worker's event loop."""

    def __init__(
        self, engine: Engine, events: JobEvents, compute: Callable[[Callable[[], Any]], Awaitable[Any]]
    ) -> None:
        """`compute` runs work on the thread that owns the model."""
        self._engine = engine
        self._events = events
        self._compute = compute

    async def draw_if_due(self, attempt: Attempt, run: Run, now: float) -> None:
        """Draws a preview and reports it, if one is due. A failure is logged and does not disturb the training: a
        broken device makes the next tick fail."""
        previews = self._events.previews
        if attempt.over or not previews.due(attempt.name, now):
            return
        template, began = run.task.templates[0][0], time.monotonic()
        try:
            pixels = await self._compute(lambda: self._engine.preview(run, template))
        except Exception as error:
            _logger.warning("preview could not be drawn", job=attempt.name, error=str(error))
            return
        finally:
            previews.drawn(attempt.name, began, time.monotonic())
        png = await asyncio.to_thread(to_png, pixels)
        prompt = template.replace("{}", f"<{ConceptName.parse(attempt.job.concept).concept}>")
        if not attempt.over:
            preview = resources_pb2.JobEvent.Preview(step=run.step, png=png, prompt=prompt)
            self._events.report(attempt.name, attempt.number, preview)
