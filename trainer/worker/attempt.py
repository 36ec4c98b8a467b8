"""One worker's turn at a job."""

import asyncio
import time
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property

from pseudoword.trainer.v1 import resources_pb2

from rpc.identity import Principal, from_json
from trainer.evaluation.measurement import Measurement
from trainer.jobs.commands import MoveJob
from trainer.jobs.conversions import job_of
from trainer.jobs.life_cycle import Move
from trainer.jobs.tables import Row
from trainer.training.run import Run


@dataclass(kw_only=True, eq=False)
class Attempt:
    """An attempt at a job that this worker holds. Owned by the worker's event loop.

    `row` is the job's row as it was taken; the task is made from it alone. `run`, or for an evaluation `measurement`,
    is None until the pictures are encoded. `over`: the attempt has ended, or lost its job.
    """

    row: Row
    # When training began and when its last step ended; seconds on the monotonic clock.
    began: float = field(default_factory=time.monotonic)
    stepped: float = 0.0
    # The blob that the log names as the job's checkpoint, when it was written, and a write in progress.
    checkpoint: str = ""
    saved: float = 0.0
    saving: asyncio.Task[None] | None = None
    # Steps and seconds of earlier attempts, from whose checkpoint this one resumed.
    first_step: int = 0
    trained_s: float = 0.0
    run: Run | None = None
    measurement: Measurement | None = None
    over: bool = False

    def __post_init__(self) -> None:
        self.checkpoint = self.row["detail"].get("checkpoint", "")

    @cached_property
    def job(self) -> resources_pb2.Job:
        return job_of(self.row, self.row["revision"])

    @cached_property
    def creator(self) -> Principal:
        """The caller on whose behalf the job is trained and published."""
        return from_json(self.row["principal"])

    @property
    def name(self) -> str:
        name: str = self.row["name"]
        return name

    @property
    def tenant(self) -> str:
        tenant: str = self.row["tenant"]
        return tenant

    @property
    def number(self) -> int:
        """The fencing token: the log refuses commands of any other attempt of the job."""
        number: int = self.row["attempt"]
        return number

    @property
    def worker_deaths(self) -> int:
        deaths: int = self.row["worker_deaths"]
        return deaths

    @property
    def created_us(self) -> int:
        created: int = self.row["created_us"]
        return created

    def trained(self, now: float) -> timedelta:
        """Wall time of the training until `now`, including earlier attempts."""
        return timedelta(seconds=self.trained_s + now - self.began)

    def progress(self, step: int, steps: int, now: float) -> resources_pb2.Progress:
        """The progress after `step` of `steps`; this attempt must have made at least one of them."""
        progress = resources_pb2.Progress(step=step, steps=steps)
        elapsed = timedelta(seconds=now - self.began)
        progress.elapsed.FromTimedelta(elapsed)
        progress.remaining.FromTimedelta(elapsed * (steps - step) / (step - self.first_step))
        return progress

    def move(self, move: Move, **detail: object) -> MoveJob:
        return MoveJob(name=self.name, move=move, attempt=self.number, detail=detail)
