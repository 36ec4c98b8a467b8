"""The trainer's state machine: uploaded pictures, and the life of every job.

Every change of a job's state is an event in the log, so jobs survive any failure of a server.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from json import dumps, loads
from typing import Any

from rpc.errors import FailedPrecondition, ResourceExhausted
from storage.ledger.state_machine import Answer, CommittedEvent, Event
from storage.sql import check_etag, create_tables
from trainer.jobs import retention
from trainer.jobs.commands import (
    AddPicture,
    Command,
    CreateJob,
    DeletePicture,
    FixFirst,
    KeepCheckpoint,
    KeepFirst,
    MoveJob,
    TenantLimits,
)
from trainer.jobs.follow_up import follow_up, name_of
from trainer.jobs.life_cycle import ENDED, Move, Purpose, State, WrongState
from trainer.jobs.tables import SCHEMA, Row, apply_create, apply_move, job, life_body, life_of

SHARD = 0
SHARDS = 1
# Keys of a job's detail whose values are names of blobs.
_BLOBS = ("checkpoint", "embedding", "record", "first_embedding", "first_record")


class TrainerStateMachine:
    """A StateMachine: the rules and tables of pictures and jobs."""

    name = "trainer"
    schema_version = 7

    def __init__(self, limits: TenantLimits | None = None) -> None:
        self._limits = limits or TenantLimits()

    def create(self, db: sqlite3.Connection) -> None:
        """Create the empty tables."""
        create_tables(db, SCHEMA)

    def decide(self, db: sqlite3.Connection, command: Command, now_us: int) -> Sequence[Event] | Answer:
        """Raises NotFound, InvalidArgument, FailedPrecondition, Aborted, ResourceExhausted."""
        match command:
            case AddPicture(lifetime_us=lifetime_us):
                retention.check_bytes(db, command.name, command.size_bytes, self._limits.picture_bytes_per_tenant)
                fields = {key: value for key, value in vars(command).items() if key != "lifetime_us"}
                return [Event(kind="picture-added", body=fields | {"expires_us": now_us + lifetime_us})]
            case DeletePicture(name=name, expired=expired):
                row = retention.picture(db, name)
                if expired and row["expires_us"] > now_us:
                    return Answer(value={})
                retention.refuse_needed(db, name)
                return [Event(kind="picture-deleted", body={"name": name})]
            case CreateJob():
                _check_limits(db, command.tenant, _purpose(command.spec), self._limits)
                needed = retention.check_needed(db, command.spec, now_us)
                body = vars(command) | {"spec": dict(command.spec), "pictures": needed}
                return [Event(kind="job-created", body=body)]
            case MoveJob():
                return _decide_move(db, command, now_us, self._limits)
            case KeepCheckpoint():
                row = _held_job(db, command.name, command.attempt)
                if row["state"] != State.RUNNING:
                    raise _wrong_state(row, f"is {row['state']}; a checkpoint needs {State.RUNNING}")
                return [Event(kind="checkpoint-kept", body={"name": command.name, "checkpoint": command.checkpoint})]
            case FixFirst(name=name, embedding=embedding, record=record):
                row = _held_job(db, name, command.attempt)
                if row["state"] != State.RUNNING:
                    raise _wrong_state(row, f"is {row['state']}; a first version needs {State.RUNNING}")
                if "first_record" in row["detail"]:
                    return Answer(value=row)
                return [_detail_noted(name, first_embedding=embedding, first_record=record)]
            case KeepFirst(name=name, version=version):
                return [_detail_noted(name, first_version=version)]

    def apply(self, db: sqlite3.Connection, event: CommittedEvent) -> Row:
        """Applies one event to the tables. Returns the row of the picture or job; for a deleted picture, its last
        row."""
        body, revision = event.body, str(event.revision)
        match event.kind:
            case "picture-added":
                db.execute(
                    "INSERT INTO pictures VALUES "
                    "(:name, :blob, :media_type, :size_bytes, :width, :height, :now, :now, :expires_us)"
                    " ON CONFLICT (name) DO UPDATE SET uploaded_us = excluded.uploaded_us,"
                    " expires_us = max(expires_us, excluded.expires_us)",
                    body | {"now": event.time_us},
                )
                return retention.picture(db, body["name"])
            case "picture-deleted":
                row = retention.picture(db, body["name"])
                db.execute("DELETE FROM pictures WHERE name = :name", body)
                return row
            case "job-created":
                apply_create(db, body, _purpose(body["spec"]), event.time_us, revision)
                retention.add_references(db, body["name"], body["pictures"])
                return job(db, body["name"])
            case "follow-up-created":
                created = follow_up(job(db, body["of"]), body["evaluates"])
                apply_create(db, created, Purpose.FOLLOW_UP, event.time_us, revision)
                retention.copy_references(db, body["of"], body["name"])
                return job(db, body["name"])
            case "job-moved":
                apply_move(db, body, event.time_us, revision)
                return job(db, body["name"])
            case "checkpoint-kept":
                detail = job(db, body["name"])["detail"] | {"checkpoint": body["checkpoint"]}
                db.execute("UPDATE jobs SET detail = ? WHERE name = ?", (dumps(detail), body["name"]))
                return job(db, body["name"])
            case "job-noted":
                detail = job(db, body["name"])["detail"] | body["detail"]
                db.execute(
                    "UPDATE jobs SET detail = ?, revision = ? WHERE name = ?",
                    (dumps(detail), revision, body["name"]),
                )
                return job(db, body["name"])
            case kind:
                raise AssertionError(f"no event of this state machine is called {kind}")

    def blobs(self, db: sqlite3.Connection) -> Iterator[str]:
        """Names of the blobs in use: pictures, and unfinished jobs' checkpoints and unpublished results."""
        for row in db.execute("SELECT blob FROM pictures"):
            yield row["blob"]
        for row in db.execute(f"SELECT detail FROM jobs WHERE state IN ({retention.UNFINISHED_SQL})"):
            detail = loads(row["detail"])
            yield from (detail[key] for key in _BLOBS if detail.get(key))

    def doomed(self, db: sqlite3.Connection, blob: str) -> bool:
        """Always False: the trainer deletes a blob when nothing refers to it any more, and never uses a name twice."""
        return False


def _held_job(db: sqlite3.Connection, name: str, attempt: int | None) -> Row:
    """A job's row. Raises FailedPrecondition (ATTEMPT_OVER) if `attempt` is given and is not the current attempt."""
    row = job(db, name)
    if attempt is not None and attempt != row["attempt"]:
        raise FailedPrecondition(
            f"attempt {attempt} of {name} is over; the current attempt is {row['attempt']}", reason="ATTEMPT_OVER"
        )
    return row


def _wrong_state(row: Row, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{row['name']} {why}", reason="JOB_STATE", metadata={"job": row["name"], "state": row["state"]}
    )


def _purpose(spec: Mapping[str, Any]) -> Purpose:
    """The purpose of a client's job."""
    return Purpose.EVALUATION if "evaluates" in spec else Purpose.TRAINING


def _decide_move(db: sqlite3.Connection, command: MoveJob, now_us: int, limits: TenantLimits) -> list[Event]:
    row = _held_job(db, command.name, command.attempt)
    check_etag(command.etag, row["revision"], command.name)
    try:
        life = life_of(row).after(command.move)
    except WrongState as error:
        raise _wrong_state(row, str(error)) from None
    if command.move is Move.RETRY:
        _check_limits(db, row["tenant"], row["purpose"], limits)
        retention.check_needed(db, row["spec"], now_us)
    body: Row = {"name": command.name, "move": command.move.value, "detail": dict(command.detail)}
    if life.state in ENDED:
        kept_us = limits.after_success_us if life.state is State.SUCCEEDED else limits.after_failure_us
        body["pictures"] = {"expire_us": now_us + kept_us, "failures_since_us": now_us - limits.after_failure_us}
    # The follow-up is created before its job ends, so that the pictures are still needed when the job releases them.
    follow_ups = []
    if command.move is Move.FINISH and row["purpose"] == Purpose.TRAINING and _has_follow_up(db, row["tenant"], limits):
        body["detail"]["evaluation_job"] = name_of(command.name)
        # The event names the job instead of repeating it, so that it always fits into an entry.
        created = {"name": name_of(command.name), "of": command.name, "evaluates": command.detail["version"]}
        follow_ups = [Event(kind="follow-up-created", body=created)]
    return [*follow_ups, Event(kind="job-moved", body=body | life_body(life))]


def _detail_noted(name: str, **detail: str) -> Event:
    return Event(kind="job-noted", body={"name": name, "detail": detail})


def _has_follow_up(db: sqlite3.Connection, tenant: str, limits: TenantLimits) -> bool:
    """Whether a version that a tenant publishes now gets a follow-up evaluation."""
    return _count(db, Purpose.FOLLOW_UP, tenant) < limits.follow_ups


def _count(db: sqlite3.Connection, purpose: str, tenant: str = "") -> int:
    """Number of unfinished jobs of a tenant, or of all tenants."""
    counted = f"SELECT count(*) FROM jobs WHERE state IN ({retention.UNFINISHED_SQL}) AND purpose = ?"
    if tenant:
        return int(db.execute(f"{counted} AND tenant = ?", (purpose, tenant)).fetchone()[0])
    return int(db.execute(counted, (purpose,)).fetchone()[0])


def _check_limits(db: sqlite3.Connection, tenant: str, purpose: str, limits: TenantLimits) -> None:
    """Raises ResourceExhausted if no further client's job of this purpose is allowed."""
    if purpose == Purpose.FOLLOW_UP:  # a client retries it
        purpose = Purpose.EVALUATION
    total, own = _count(db, purpose), _count(db, purpose, tenant)
    for count, limit, reason, whose in (
        (own, limits.unfinished_per_tenant, "TENANT_JOBS", f"tenants/{tenant} has"),
        (total, limits.unfinished, "QUEUE_FULL", "the trainer has"),
    ):
        if count >= limit:
            raise ResourceExhausted(
                f"{whose} {count} unfinished jobs; the limit is {limit}: try again when some have ended",
                reason=reason,
                metadata={"unfinished": str(count), "limit": str(limit)},
                retry_after=retention.RETRY_AFTER,
            )
