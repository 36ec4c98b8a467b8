"""The commands of the trainer's state machine, and the limits of its tenants."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.jobs.life_cycle import Move


@dataclass(frozen=True, kw_only=True)
class AddPicture:
    """Add a picture whose bytes are in the blob `blob`; it expires after `lifetime_us`. A picture that exists already
    keeps its first blob, and only its expiry is extended."""

    name: str
    blob: str
    media_type: str
    size_bytes: int
    width: int
    height: int
    lifetime_us: int


@dataclass(frozen=True, kw_only=True)
class DeletePicture:
    """Delete a picture that no unfinished job needs; with `expired`, only if it has expired."""

    name: str
    expired: bool = False


@dataclass(frozen=True, kw_only=True)
class CreateJob:
    """Create a job. `spec` is the client's Job message as protobuf's JSON, with defaults filled in; `principal` is the
    caller as JSON, on whose behalf the word is published."""

    name: str
    tenant: str
    priority: int
    spec: Mapping[str, Any]
    creator: str
    principal: str


@dataclass(frozen=True, kw_only=True)
class MoveJob:
    """Change a job's state. `attempt` is a fencing token: anything but the current attempt is refused; None skips the
    check. `detail` is stored with the job: `error`, `progress`, `checkpoint`, `embedding` and `record` (blobs),
    `version`, `evaluation`.
    """

    name: str
    move: Move
    attempt: int | None = None
    etag: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class KeepCheckpoint:
    """Record the blob `checkpoint`, from which a job that is RUNNING under `attempt` can resume."""

    name: str
    attempt: int
    checkpoint: str


@dataclass(frozen=True, kw_only=True)
class FixFirst:
    """Fix the initial version of a job that is RUNNING under `attempt`, before its first step: the blobs `embedding`
    and `record`. A second command for the same job changes nothing."""

    name: str
    attempt: int
    embedding: str
    record: str


@dataclass(frozen=True, kw_only=True)
class KeepFirst:
    """Record that the registry has the job's initial version, as `version`. Allowed in every state of the job."""

    name: str
    version: str


Command = AddPicture | DeletePicture | CreateJob | MoveJob | KeepCheckpoint | FixFirst | KeepFirst


@dataclass(frozen=True, kw_only=True)
class TenantLimits:
    """Limits of tenants. A job is unfinished until it has succeeded, failed or been cancelled.

    `unfinished` and `unfinished_per_tenant` limit training jobs and clients' evaluations, each kind counted by itself.
    `follow_ups` limits each tenant's unfinished evaluations that the trainer creates after publishing; they are not
    counted among the others, and with 0 it creates none. The pictures of a succeeded job are kept for
    `after_success_us`, those of a failed or cancelled one for `after_failure_us`; longer while another job needs them.
    """

    unfinished: int = 1_000
    unfinished_per_tenant: int = 100
    picture_bytes_per_tenant: int = 2**30
    after_success_us: int = 0
    after_failure_us: int = 24 * 3_600_000_000
    follow_ups: int = 0
