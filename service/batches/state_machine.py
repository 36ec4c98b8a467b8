"""Generation's state machine: batches and their states. A batch's progress is in its objects, not in the log."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from json import dumps, loads
from typing import Any

from rpc.errors import FailedPrecondition, NotFound, ResourceExhausted
from service.batches.life_cycle import ENDED, Move, State, WrongState, after
from storage.ledger.state_machine import Answer, CommittedEvent, Event
from storage.sql import Condition, check_etag, create_tables, newest_first

SHARD = 0
SHARDS = 1
Row = dict[str, Any]

_TABLES = """
CREATE TABLE batches (
    name TEXT PRIMARY KEY, tenant TEXT NOT NULL, spec TEXT NOT NULL, blob TEXT NOT NULL, total INTEGER NOT NULL,
    shard_pictures INTEGER NOT NULL, weights TEXT NOT NULL, creator TEXT NOT NULL, principal TEXT NOT NULL,
    state TEXT NOT NULL, created_us INTEGER NOT NULL, ended_us INTEGER, revision TEXT NOT NULL, detail TEXT NOT NULL);
CREATE INDEX batches_tenant ON batches (tenant, created_us DESC, name);
CREATE INDEX batches_state ON batches (state, created_us, name);
"""


@dataclass(frozen=True, kw_only=True)
class CreateBatch:
    """Create a batch. `blob` has the whole Batch with defaults filled in; `spec` has the fields that lists return, as
    protobuf's JSON. `weights` is the digest of the model that draws all its pictures; `principal` is the caller as
    JSON, on whose behalf words are resolved. Refused if the tenant has `max_active` unfinished batches."""

    name: str
    tenant: str
    spec: Mapping[str, Any]
    blob: str
    total: int
    shard_pictures: int
    weights: str
    creator: str
    principal: str
    max_active: int


@dataclass(frozen=True, kw_only=True)
class MoveBatch:
    """End a batch. `detail` is stored with it: `done`, `error`."""

    name: str
    move: Move
    etag: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


Command = CreateBatch | MoveBatch


class BatchStateMachine:
    """A StateMachine: the rules and tables of batches."""

    name = "generation"
    schema_version = 1

    def create(self, db: sqlite3.Connection) -> None:
        """Create the empty tables."""
        create_tables(db, _TABLES)

    def decide(self, db: sqlite3.Connection, command: Command, now_us: int) -> Sequence[Event] | Answer:
        """Raises NotFound, FailedPrecondition, Aborted, ResourceExhausted."""
        match command:
            case CreateBatch(tenant=tenant, max_active=limit):
                active = db.execute(
                    "SELECT count(*) FROM batches WHERE tenant = ? AND state = 'ACTIVE'", (tenant,)
                ).fetchone()[0]
                if active >= limit:
                    raise ResourceExhausted(
                        f"tenants/{tenant} has {active} unfinished batches; the limit is {limit}: wait until one ends",
                        reason="BATCHES_FULL",
                        metadata={"limit": str(limit)},
                    )
                body = {key: value for key, value in vars(command).items() if key != "max_active"}
                return [Event(kind="batch-created", body=body | {"spec": dict(command.spec)})]
            case MoveBatch():
                return [_decide_move(db, command)]

    def apply(self, db: sqlite3.Connection, event: CommittedEvent) -> Row:
        """Applies one event to the tables. Returns the batch's row."""
        body, revision = event.body, str(event.revision)
        match event.kind:
            case "batch-created":
                db.execute(
                    "INSERT INTO batches VALUES (:name, :tenant, :spec, :blob, :total, :shard_pictures, :weights,"
                    " :creator, :principal, 'ACTIVE', :now, NULL, :revision, '{}')",
                    body | {"spec": dumps(body["spec"]), "now": event.time_us, "revision": revision},
                )
            case "batch-moved":
                db.execute(
                    "UPDATE batches SET state = :state, ended_us = :now, revision = :revision, detail = :detail"
                    " WHERE name = :name",
                    body | {"detail": dumps(body["detail"]), "now": event.time_us, "revision": revision},
                )
            case kind:
                raise AssertionError(f"no event of this state machine is called {kind}")
        return batch(db, body["name"])

    def blobs(self, db: sqlite3.Connection) -> Iterator[str]:
        """Names of the blobs with the batches' specs."""
        for row in db.execute("SELECT blob FROM batches"):
            yield row["blob"]

    def doomed(self, db: sqlite3.Connection, blob: str) -> bool:
        """Always False: batches and their specs are never deleted."""
        return False


def batch(db: sqlite3.Connection, name: str) -> Row:
    """A batch's row with `spec` and `detail` parsed. Raises NotFound."""
    row = db.execute("SELECT * FROM batches WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise NotFound(f"there is no {name}", reason="BATCH_NOT_FOUND", metadata={"batch": name})
    return _parsed(row)


def batches(
    db: sqlite3.Connection, tenant: str, after: Sequence[Any] | None, limit: int, condition: Condition
) -> list[Row]:
    """Up to `limit` batches of a tenant that fulfil `condition`, newest first, after the key `after`
    [created_us, name]."""
    return [_parsed(row) for row in newest_first(db, "batches", tenant, after, limit, condition)]


def active(db: sqlite3.Connection) -> list[Row]:
    """All batches that have not ended, oldest first."""
    rows = db.execute("SELECT * FROM batches WHERE state = 'ACTIVE' ORDER BY created_us, name")
    return [_parsed(row) for row in rows]


def _parsed(row: sqlite3.Row) -> Row:
    return dict(row) | {"spec": loads(row["spec"]), "detail": loads(row["detail"])}


def _decide_move(db: sqlite3.Connection, command: MoveBatch) -> Event:
    row = batch(db, command.name)
    check_etag(command.etag, row["revision"], command.name)
    try:
        state = after(State(row["state"]), command.move)
    except WrongState as error:
        raise FailedPrecondition(
            f"{command.name} {error}", reason="BATCH_STATE", metadata={"batch": command.name, "state": row["state"]}
        ) from None
    return Event(kind="batch-moved", body={"name": command.name, "state": state.value, "detail": dict(command.detail)})


def has_ended(row: Row) -> bool:
    return State(row["state"]) in ENDED
