"""A job while one worker holds it."""

import asyncio
import time
from dataclasses import dataclass, field
from datetime import timedelta

from pseudoword.trainer.v1 import resources_pb2

from trainer.evaluation.measurement import Measurement
from trainer.jobs.commands import MoveJob
from trainer.jobs.life_cycle import Move
from trainer.training.run import Run


@dataclass(kw_only=True)
class Attempt:
    """A job that this worker holds. `run`, or of an evaluation `measurement`, is absent until its pictures are encoded;
    `over` once nothing more is to come of it."""

    job: resources_pb2.Job
    tenant: str
    number: int
    worker_deaths: int
    created_us: int
    began: float = field(default_factory=time.monotonic)  # training, and its last step
    stepped: float = 0.0
    # Blob that the log has as the job's checkpoint, when it was made, and whether another one is on its way.
    checkpoint: str = ""
    saved: float = 0.0
    saving: asyncio.Task[None] | None = None
    # Steps and seconds of earlier attempts that this one went on from.
    first_step: int = 0
    trained_s: float = 0.0
    run: Run | None = None
    measurement: Measurement | None = None
    over: bool = False

    def trained(self, now: float) -> timedelta:
        """Wall time of the training until `now`, earlier attempts' included."""
        return timedelta(seconds=self.trained_s + now - self.began)

    def progress(self, step: int, steps: int, now: float) -> resources_pb2.Progress:
        """What watchers are told after `step` of `steps`, at least one of which this attempt has made."""
        progress = resources_pb2.Progress(step=step, steps=steps)
        elapsed = timedelta(seconds=now - self.began)
        progress.elapsed.FromTimedelta(elapsed)
        progress.remaining.FromTimedelta(elapsed * (steps - step) / (step - self.first_step))
        return progress

    def move(self, move: Move, **detail: object) -> MoveJob:
        return MoveJob(name=self.job.name, move=move, attempt=self.number, detail=detail)
