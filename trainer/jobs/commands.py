"""What the trainer can be asked to do with pictures and jobs, and what its tenants may have."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.jobs.life_cycle import Move


@dataclass(frozen=True, kw_only=True)
class AddPicture:
    """A picture's bytes are in the blob `blob`; it may go `lifetime_us` from now. One that is there already keeps its
    first blob, and only stays longer."""

    name: str
    blob: str
    media_type: str
    size_bytes: int
    width: int
    height: int
    lifetime_us: int


@dataclass(frozen=True, kw_only=True)
class DeletePicture:
    """Forget a picture that no unfinished job needs; `expired`: only if its time is over."""

    name: str
    expired: bool = False


@dataclass(frozen=True, kw_only=True)
class CreateJob:
    """`spec` is the Job message as its client made it, defaults filled in, as protobuf's JSON; `principal` is the
    caller's, as JSON, for whom the word will be published."""

    name: str
    tenant: str
    priority: int
    spec: Mapping[str, Any]
    creator: str
    principal: str


@dataclass(frozen=True, kw_only=True)
class MoveJob:
    """Change a job's state. With `attempt` only while that attempt holds the job: whoever lost it cannot speak for it
    any more. `detail` is kept with the job: `error`, `progress`, `checkpoint`, `embedding` and `record` (blobs),
    `version`, `evaluation`.
    """

    name: str
    move: Move
    attempt: int | None = None
    etag: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class KeepCheckpoint:
    """The blob `checkpoint` is from where a job that is RUNNING under `attempt` can go on."""

    name: str
    attempt: int
    checkpoint: str


@dataclass(frozen=True, kw_only=True)
class FixFirst:
    """What a job that is RUNNING under `attempt` publishes at once is fixed, before any step: the blobs `embedding` and
    `record`. What was fixed before stays."""

    name: str
    attempt: int
    embedding: str
    record: str


@dataclass(frozen=True, kw_only=True)
class KeepFirst:
    """The registry has what was fixed at first, as `version`; whatever became of the job meanwhile."""

    name: str
    version: str


Command = AddPicture | DeletePicture | CreateJob | MoveJob | KeepCheckpoint | FixFirst | KeepFirst


@dataclass(frozen=True, kw_only=True)
class TenantLimits:
    """What is promised to tenants, and what is not. A job is unfinished until it has succeeded, failed or been
    cancelled.

    Of each tenant at most `follow_ups` evaluations that the trainer makes after publishing are unfinished; 0: it makes
    none. They are not counted among the others, and neither are the clients' evaluations among the jobs that train.
    Pictures of a job that has succeeded stay for `after_success_us`, those of one that has failed or was cancelled for
    `after_failure_us`; unless another job needs them.
    """

    unfinished: int = 1_000
    unfinished_per_tenant: int = 100
    picture_bytes_per_tenant: int = 2**30
    after_success_us: int = 0
    after_failure_us: int = 24 * 3_600_000_000
    follow_ups: int = 0
