"""The SQL tables of the trainer's state machine: pictures, jobs, and the pictures that each job needs."""

import sqlite3
from collections.abc import Mapping, Sequence
from json import dumps, loads
from typing import Any

from rpc.errors import NotFound
from rpc.filters import Field, Kind
from storage.sql import EVERYTHING, Condition, newest_first
from trainer.jobs import retention
from trainer.jobs.life_cycle import ENDED, UNFINISHED, Life, Purpose, State

Row = dict[str, Any]

# Fields that ListJobs can filter by.
FILTERS: Mapping[str, Field] = {
    "state": Field(kind=Kind.ENUM, sql="'STATE_' || state", values=tuple(f"STATE_{state}" for state in State)),
    "concept": Field(kind=Kind.TEXT, sql="json_extract(spec, '$.concept')"),
    # NULL for a training job.
    "evaluates": Field(kind=Kind.TEXT, sql="json_extract(spec, '$.evaluates')"),
    "creator": Field(kind=Kind.TEXT, sql="creator"),
    "create_time": Field(kind=Kind.TIME, sql="created_us"),
}
SCHEMA = """
CREATE TABLE pictures (
    name TEXT PRIMARY KEY, blob TEXT NOT NULL, media_type TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL, created_us INTEGER NOT NULL, uploaded_us INTEGER NOT NULL,
    expires_us INTEGER NOT NULL);
CREATE INDEX pictures_expiry ON pictures (expires_us);
CREATE TABLE jobs (
    name TEXT PRIMARY KEY, tenant TEXT NOT NULL, purpose TEXT NOT NULL, priority INTEGER NOT NULL, spec TEXT NOT NULL,
    creator TEXT NOT NULL, principal TEXT NOT NULL, state TEXT NOT NULL, attempt INTEGER NOT NULL,
    worker_deaths INTEGER NOT NULL, handed_back INTEGER NOT NULL, created_us INTEGER NOT NULL, started_us INTEGER,
    ended_us INTEGER, revision TEXT NOT NULL, detail TEXT NOT NULL);
CREATE INDEX jobs_tenant ON jobs (tenant, created_us DESC, name);
CREATE INDEX jobs_state ON jobs (state, priority DESC, created_us, name);
CREATE TABLE job_pictures (
    job TEXT NOT NULL, picture TEXT NOT NULL, uploaded_us INTEGER NOT NULL, PRIMARY KEY (picture, job)) WITHOUT ROWID;
CREATE INDEX job_pictures_job ON job_pictures (job);
"""


def job(db: sqlite3.Connection, name: str) -> Row:
    """A job's row with `spec` and `detail` parsed. Raises NotFound."""
    row = db.execute("SELECT * FROM jobs WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise NotFound(f"there is no {name}", reason="JOB_NOT_FOUND", metadata={"job": name})
    return _job_row(row)


def jobs(
    db: sqlite3.Connection,
    tenant: str,
    after: Sequence[Any] | None,
    limit: int,
    condition: Condition = EVERYTHING,
) -> list[Row]:
    """Up to `limit` jobs of a tenant that fulfil `condition`, newest first, after the key `after` [created_us,
    name]."""
    return [_job_row(row) for row in newest_first(db, "jobs", tenant, after, limit, condition)]


def next_queued(db: sqlite3.Connection, max_per_tenant: int) -> Row | None:
    """The queued job to take next: of the tenant with the fewest running training jobs, the oldest of the highest
    priority; a job with a priority below 0 only if no other is eligible. A training job of a tenant that has
    `max_per_tenant` running ones is not eligible; an evaluation always is."""
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
    rows = db.execute(f"SELECT * FROM jobs WHERE state IN ({retention.UNFINISHED_SQL}) ORDER BY created_us, name")
    return [_job_row(row) for row in rows]


def counts(db: sqlite3.Connection) -> tuple[dict[State, int], dict[State, int]]:
    """Number of unfinished jobs by state: of training jobs, and of evaluations."""
    training, evaluations = (dict.fromkeys(sorted(UNFINISHED), 0) for _ in range(2))
    rows = db.execute(
        "SELECT purpose = 'TRAINING' AS trains, state, count(*) AS n FROM jobs"
        f" WHERE state IN ({retention.UNFINISHED_SQL}) GROUP BY trains, state"
    )
    for row in rows:
        (training if row["trains"] else evaluations)[State(row["state"])] = row["n"]
    return training, evaluations


def _job_row(row: sqlite3.Row) -> Row:
    return dict(row) | {"spec": loads(row["spec"]), "detail": loads(row["detail"])}


def life_of(row: Row) -> Life:
    """The position of a job's row in its life."""
    fields = {name: row[name] for name in ("attempt", "worker_deaths", "handed_back")}
    return Life(state=State(row["state"]), **fields)


def life_body(life: Life) -> Row:
    """A job's position in its life, under the keys of the log's events."""
    return {
        "state": life.state.value,
        "attempt": life.attempt,
        "losses": life.worker_deaths,
        "handed_back": life.handed_back,
    }


def apply_create(db: sqlite3.Connection, body: Row, purpose: Purpose, time_us: int, revision: str) -> None:
    db.execute(
        "INSERT INTO jobs VALUES (:name, :tenant, :purpose, :priority, :spec, :creator, :principal, 'QUEUED', 0, 0,"
        " 0, :now, NULL, NULL, :revision, '{}')",
        body | {"purpose": purpose, "spec": dumps(body["spec"]), "now": time_us, "revision": revision},
    )


def apply_move(db: sqlite3.Connection, body: Row, time_us: int, revision: str) -> None:
    row = job(db, body["name"])
    state = State(body["state"])
    if "pictures" in body:  # absent in entries of older servers
        retention.release(db, body["name"], state, **body["pictures"])
    detail = row["detail"] | body["detail"]
    if state is State.QUEUED:  # of an earlier attempt only its checkpoint is kept
        detail = {key: detail[key] for key in ("checkpoint",) if key in detail}
    elif state is not State.RUNNING:
        detail.pop("checkpoint", None)
    db.execute(
        "UPDATE jobs SET state = ?, attempt = ?, worker_deaths = ?, handed_back = ?, started_us = ?, ended_us = ?,"
        " revision = ?, detail = ? WHERE name = ?",
        (
            state.value,
            body["attempt"],
            body["losses"],
            # Absent in entries of older servers: there a hand-back lowered the attempt number.
            body.get("handed_back", 0),
            time_us if state is State.RUNNING else row["started_us"],
            time_us if state in ENDED else None,
            revision,
            dumps(detail),
            body["name"],
        ),
    )
