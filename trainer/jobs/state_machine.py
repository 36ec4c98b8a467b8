"""The trainer's own ledger: which pictures were uploaded, and the life of every job.

Every change of a job's state is an entry of the log, so that jobs survive whatever happens to a server.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from json import dumps, loads
from typing import Any

from rpc.errors import Aborted, FailedPrecondition, NotFound, ResourceExhausted
from rpc.filters import Field, Kind
from storage.ledger.state_machine import Answer, Change, Effect
from trainer.jobs import retention as loans
from trainer.jobs.follow_up import follow_up, name_of
from trainer.jobs.life_cycle import ENDED, UNFINISHED, Life, Move, Purpose, State, WrongState

SHARD = 0
SHARDS = 1
Row = dict[str, Any]

# What ListJobs can be asked to filter by.
FILTERS: Mapping[str, Field] = {
    "state": Field(kind=Kind.ENUM, sql="'STATE_' || state", values=tuple(f"STATE_{state}" for state in State)),
    "concept": Field(kind=Kind.TEXT, sql="json_extract(spec, '$.concept')"),
    # Absent for a job that trains.
    "evaluates": Field(kind=Kind.TEXT, sql="json_extract(spec, '$.evaluates')"),
    "creator": Field(kind=Kind.TEXT, sql="creator"),
    "create_time": Field(kind=Kind.TIME, sql="created_us"),
}
# Of a job's detail, what names a blob.
_BLOBS = ("checkpoint", "embedding", "record", "first_embedding", "first_record")
_TABLES = """
CREATE TABLE pictures (
    name TEXT PRIMARY KEY, blob TEXT NOT NULL, media_type TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL, created_us INTEGER NOT NULL, uploaded_us INTEGER NOT NULL,
    expires_us INTEGER NOT NULL);
CREATE INDEX pictures_expiry ON pictures (expires_us);
CREATE TABLE jobs (
    name TEXT PRIMARY KEY, tenant TEXT NOT NULL, purpose TEXT NOT NULL, priority INTEGER NOT NULL, spec TEXT NOT NULL,
    creator TEXT NOT NULL, principal TEXT NOT NULL, state TEXT NOT NULL, attempt INTEGER NOT NULL,
    losses INTEGER NOT NULL, handed_back INTEGER NOT NULL, created_us INTEGER NOT NULL, started_us INTEGER,
    ended_us INTEGER, revision TEXT NOT NULL, detail TEXT NOT NULL);
CREATE INDEX jobs_tenant ON jobs (tenant, created_us DESC, name);
CREATE INDEX jobs_state ON jobs (state, priority DESC, created_us, name);
CREATE TABLE job_pictures (
    job TEXT NOT NULL, picture TEXT NOT NULL, uploaded_us INTEGER NOT NULL, PRIMARY KEY (picture, job)) WITHOUT ROWID;
CREATE INDEX job_pictures_job ON job_pictures (job);
"""


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


Command = AddPicture | DeletePicture | CreateJob | MoveJob | KeepCheckpoint | FixFirst | KeepFirst


class TrainerStateMachine:
    """Rules and tables of pictures and jobs; a storage.Book."""

    name = "trainer"
    schema_version = 6

    def __init__(self, terms: TenantLimits | None = None) -> None:
        self._terms = terms or TenantLimits()

    def create(self, db: sqlite3.Connection) -> None:
        """Make the tables, empty."""
        for statement in _TABLES.split(";"):  # executescript would end the view's transaction
            db.execute(statement)

    def decide(self, db: sqlite3.Connection, command: Command, now_us: int) -> Sequence[Effect] | Answer:
        """Raises NotFound, InvalidArgument, FailedPrecondition, Aborted, ResourceExhausted."""
        match command:
            case AddPicture(lifetime_us=lifetime_us):
                loans.check_bytes(db, command.name, command.size_bytes, self._terms.picture_bytes_per_tenant)
                fields = {key: value for key, value in vars(command).items() if key != "lifetime_us"}
                return [Effect(kind="picture-added", body=fields | {"expires_us": now_us + lifetime_us})]
            case DeletePicture(name=name, expired=expired):
                row = loans.picture(db, name)
                if expired and row["expires_us"] > now_us:
                    return Answer(value={})
                loans.refuse_needed(db, name)
                return [Effect(kind="picture-deleted", body={"name": name})]
            case CreateJob():
                _check_room(db, command.tenant, _purpose(command.spec), self._terms)
                needed = loans.check_needed(db, command.spec, now_us)
                body = vars(command) | {"spec": dict(command.spec), "pictures": needed}
                return [Effect(kind="job-created", body=body)]
            case MoveJob():
                return _moved(db, command, now_us, self._terms)
            case KeepCheckpoint():
                row = _held(db, command.name, command.attempt)
                if row["state"] != State.RUNNING:
                    raise _wrong_state(row, f"is {row['state']}; a checkpoint needs {State.RUNNING}")
                return [Effect(kind="checkpoint-kept", body={"name": command.name, "checkpoint": command.checkpoint})]

            case FixFirst(name=name, embedding=embedding, record=record):
                row = _held(db, name, command.attempt)
                if row["state"] != State.RUNNING:
                    raise _wrong_state(row, f"is {row['state']}; a first version needs {State.RUNNING}")
                if "first_record" in row["detail"]:
                    return Answer(value=row)
                return [_noted(name, first_embedding=embedding, first_record=record)]
            case KeepFirst(name=name, version=version):
                return [_noted(name, first_version=version)]

    def apply(self, db: sqlite3.Connection, change: Change) -> Row:
        """Write one change into the tables; the answer is the row of the picture or the job, of a deleted picture as it
        was."""
        body, revision = change.mutation.effect, str(change.revision)
        match change.mutation.kind:
            case "picture-added":
                db.execute(
                    "INSERT INTO pictures VALUES "
                    "(:name, :blob, :media_type, :size_bytes, :width, :height, :now, :now, :expires_us)"
                    " ON CONFLICT (name) DO UPDATE SET uploaded_us = excluded.uploaded_us,"
                    " expires_us = max(expires_us, excluded.expires_us)",
                    body | {"now": change.time_us},
                )
                return loans.picture(db, body["name"])
            case "picture-deleted":
                row = loans.picture(db, body["name"])
                db.execute("DELETE FROM pictures WHERE name = :name", body)
                return row
            case "job-created":
                _apply_create(db, body, _purpose(body["spec"]), change.time_us, revision)
                loans.lend(db, body["name"], body["pictures"])
                return job(db, body["name"])
            case "follow-up-created":
                made = follow_up(job(db, body["of"]), body["evaluates"])
                _apply_create(db, made, Purpose.FOLLOW_UP, change.time_us, revision)
                loans.lend_on(db, body["of"], body["name"])
                return job(db, body["name"])
            case "job-moved":
                _apply_move(db, body, change.time_us, revision)
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
                raise AssertionError(f"no change of this book is called {kind}")

    def blobs(self, db: sqlite3.Connection) -> Iterator[str]:
        """The pictures, where jobs can go on, and what they have yet to publish."""
        for row in db.execute("SELECT blob FROM pictures"):
            yield row["blob"]
        for row in db.execute(f"SELECT detail FROM jobs WHERE state IN ({loans.UNFINISHED_SQL})"):
            detail = loads(row["detail"])
            yield from (detail[key] for key in _BLOBS if detail.get(key))

    def doomed(self, db: sqlite3.Connection, blob: str) -> bool:
        """A trainer deletes a blob when nothing refers to it any more, and uses no name twice."""
        return False


def job(db: sqlite3.Connection, name: str) -> Row:
    """A job's row, `spec` and `detail` read. Raises NotFound."""
    row = db.execute("SELECT * FROM jobs WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise NotFound(f"there is no {name}", reason="JOB_NOT_FOUND", metadata={"job": name})
    return _job_row(row)


def jobs(
    db: sqlite3.Connection,
    tenant: str,
    after: Sequence[Any] | None,
    limit: int,
    where: tuple[str, Mapping[str, Any]] = ("1", {}),
) -> list[Row]:
    """Up to `limit` jobs of a tenant, newest first, after the one at [created_us, name]; `where` is a condition of SQL
    over FILTERS with its parameters."""
    created_us, name = after or (2**62, "")
    condition, parameters = where
    rows = db.execute(
        "SELECT * FROM jobs WHERE tenant = :tenant"
        f" AND (created_us < :created OR (created_us = :created AND name > :name)) AND {condition}"
        " ORDER BY created_us DESC, name LIMIT :limit",
        {"tenant": tenant, "created": created_us, "name": name, "limit": limit, **parameters},
    )
    return [_job_row(row) for row in rows]


def next_queued(db: sqlite3.Connection, max_per_tenant: int) -> Row | None:
    """The job to take next, of a tenant with fewer than `max_per_tenant` that are trained, or an evaluation: of the
    tenant with the fewest, the oldest of the highest priority; priorities below 0 only when no other waits."""
    row = db.execute(
        "WITH running AS (SELECT tenant, count(*) AS n FROM jobs WHERE state = 'RUNNING' AND purpose = 'TRAINING'"
        " GROUP BY tenant) SELECT jobs.* FROM jobs LEFT JOIN running USING (tenant)"
        " WHERE state = 'QUEUED' AND (purpose != 'TRAINING' OR coalesce(n, 0) < ?)"
        " ORDER BY priority < 0, coalesce(n, 0), priority DESC, created_us, name LIMIT 1",
        (max_per_tenant,),
    ).fetchone()
    return None if row is None else _job_row(row)


def in_state(db: sqlite3.Connection, state: State) -> list[Row]:
    """All jobs in `state`, oldest first."""
    rows = db.execute("SELECT * FROM jobs WHERE state = ? ORDER BY created_us, name", (state.value,))
    return [_job_row(row) for row in rows]


def unfinished(db: sqlite3.Connection) -> list[Row]:
    """All jobs that have not ended, oldest first."""
    rows = db.execute(f"SELECT * FROM jobs WHERE state IN ({loans.UNFINISHED_SQL}) ORDER BY created_us, name")
    return [_job_row(row) for row in rows]


def counts(db: sqlite3.Connection) -> tuple[dict[State, int], dict[State, int]]:
    """How many jobs are in each state that is not an end: those that train, and the evaluations."""
    training, evaluations = (dict.fromkeys(sorted(UNFINISHED), 0) for _ in range(2))
    rows = db.execute(
        "SELECT purpose = 'TRAINING' AS trains, state, count(*) AS n FROM jobs"
        f" WHERE state IN ({loans.UNFINISHED_SQL}) GROUP BY trains, state"
    )
    for row in rows:
        (training if row["trains"] else evaluations)[State(row["state"])] = row["n"]
    return training, evaluations


def _job_row(row: sqlite3.Row) -> Row:
    return dict(row) | {"spec": loads(row["spec"]), "detail": loads(row["detail"])}


def _held(db: sqlite3.Connection, name: str, attempt: int | None) -> Row:
    """A job's row; with `attempt` only while that holds the job."""
    row = job(db, name)
    if attempt is not None and attempt != row["attempt"]:
        raise FailedPrecondition(
            f"attempt {attempt} of {name} is over; attempt {row['attempt']} holds it", reason="ATTEMPT_OVER"
        )
    return row


def _wrong_state(row: Row, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{row['name']} {why}", reason="JOB_STATE", metadata={"job": row["name"], "state": row["state"]}
    )


def _purpose(spec: Mapping[str, Any]) -> Purpose:
    """What a client's job is for."""
    return Purpose.EVALUATION if "evaluates" in spec else Purpose.TRAINING


def _moved(db: sqlite3.Connection, command: MoveJob, now_us: int, terms: TenantLimits) -> list[Effect]:
    row = _held(db, command.name, command.attempt)
    if command.etag and command.etag != row["revision"]:
        raise Aborted(
            f"{command.name} has changed since it was read; read it again",
            reason="ETAG_MISMATCH",
            metadata={"etag": row["revision"]},
        )
    try:
        life = life_of(row).after(command.move)
    except WrongState as error:
        raise _wrong_state(row, str(error)) from None
    if command.move is Move.RETRY:
        _check_room(db, row["tenant"], row["purpose"], terms)
        loans.check_needed(db, row["spec"], now_us)
    body: Row = {"name": command.name, "move": command.move.value, "detail": dict(command.detail)}
    if life.state in ENDED:
        stay_us = terms.after_success_us if life.state is State.SUCCEEDED else terms.after_failure_us
        body["pictures"] = {"expire_us": now_us + stay_us, "failures_since_us": now_us - terms.after_failure_us}
    # The follow-up is first, so that the pictures are needed on when their job lets them go.
    before = []
    if command.move is Move.FINISH and row["purpose"] == Purpose.TRAINING and _follows(db, row["tenant"], terms):
        body["detail"]["evaluation_job"] = name_of(command.name)
        # It names the job only, so that it is never too large for an entry that the job itself fitted into.
        made = {"name": name_of(command.name), "of": command.name, "evaluates": command.detail["version"]}
        before = [Effect(kind="follow-up-created", body=made)]
    return [*before, Effect(kind="job-moved", body=body | vars(life) | {"state": life.state.value})]


def _noted(name: str, **detail: str) -> Effect:
    return Effect(kind="job-noted", body={"name": name, "detail": detail})


def _follows(db: sqlite3.Connection, tenant: str, terms: TenantLimits) -> bool:
    """Whether a version that a tenant publishes now is evaluated."""
    return _count(db, Purpose.FOLLOW_UP, tenant) < terms.follow_ups


def _count(db: sqlite3.Connection, purpose: str, tenant: str = "") -> int:
    """Unfinished jobs of a tenant, or of all."""
    counted = f"SELECT count(*) FROM jobs WHERE state IN ({loans.UNFINISHED_SQL}) AND purpose = ?"
    if tenant:
        return int(db.execute(f"{counted} AND tenant = ?", (purpose, tenant)).fetchone()[0])
    return int(db.execute(counted, (purpose,)).fetchone()[0])


def _check_room(db: sqlite3.Connection, tenant: str, purpose: str, terms: TenantLimits) -> None:
    """Raises ResourceExhausted when a client's job more of this purpose would be too many."""
    if purpose == Purpose.FOLLOW_UP:  # retried
        purpose = Purpose.EVALUATION
    here, own = _count(db, purpose), _count(db, purpose, tenant)
    for found, limit, reason, whose in (
        (own, terms.unfinished_per_tenant, "TENANT_JOBS", f"tenants/{tenant} has"),
        (here, terms.unfinished, "QUEUE_FULL", "the trainer has"),
    ):
        if found >= limit:
            raise ResourceExhausted(
                f"{whose} {found} unfinished jobs; {limit} are taken: try again when some have ended",
                reason=reason,
                metadata={"unfinished": str(found), "limit": str(limit)},
                retry_after=loans.ROOM_AFTER,
            )


def life_of(row: Row) -> Life:
    """Where a job's row is in its life."""
    return Life(state=State(row["state"]), attempt=row["attempt"], losses=row["losses"], handed_back=row["handed_back"])


def _apply_create(db: sqlite3.Connection, body: Row, purpose: Purpose, time_us: int, revision: str) -> None:
    db.execute(
        "INSERT INTO jobs VALUES (:name, :tenant, :purpose, :priority, :spec, :creator, :principal, 'QUEUED', 0, 0,"
        " 0, :now, NULL, NULL, :revision, '{}')",
        body | {"purpose": purpose, "spec": dumps(body["spec"]), "now": time_us, "revision": revision},
    )


def _apply_move(db: sqlite3.Connection, body: Row, time_us: int, revision: str) -> None:
    row = job(db, body["name"])
    state = State(body["state"])
    if "pictures" in body:  # entries of older servers say nothing
        loans.release(db, body["name"], state, **body["pictures"])
    detail = row["detail"] | body["detail"]
    if state is State.QUEUED:  # of an attempt before only that counts from where it can go on
        detail = {key: detail[key] for key in ("checkpoint",) if key in detail}
    elif state is not State.RUNNING:
        detail.pop("checkpoint", None)
    db.execute(
        "UPDATE jobs SET state = ?, attempt = ?, losses = ?, handed_back = ?, started_us = ?, ended_us = ?,"
        " revision = ?, detail = ? WHERE name = ?",
        (
            state.value,
            body["attempt"],
            body["losses"],
            # Entries of older servers say nothing: there a hand-back took one off the attempts.
            body.get("handed_back", 0),
            time_us if state is State.RUNNING else row["started_us"],
            time_us if state in ENDED else None,
            revision,
            dumps(detail),
            body["name"],
        ),
    )
