"""The blobs that the catalogue needs, and the condemned ones, which may never be named again."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence

from pseudoword.names import TenantName

from registry.catalogue.commands import CondemnBlobs
from registry.catalogue.versioned_rows import FOREVER
from rpc.errors import Aborted, FailedPrecondition
from storage.ledger.state_machine import Answer, CommittedEvent, Event

# The kind of the events of garbage collection.
CONDEMNED = "blobs-condemned"
# The kind of the events that keep the names of purged concepts when a fold drops their history.
TAKEN = "names-taken"
# Events that concern no resource. Neither watches nor the audit trail show them.
HIDDEN = (CONDEMNED, TAKEN)

SCHEMA = """
CREATE TABLE condemned (blob TEXT PRIMARY KEY, condemned_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX versions_blob ON versions (blob);
CREATE INDEX versions_record ON versions (record) WHERE record != ''
"""


def named(db: sqlite3.Connection) -> Iterator[str]:
    """The blobs of all versions that are not purged."""
    for row in db.execute(f"SELECT blob, record FROM versions WHERE gone = {FOREVER}"):
        yield row["blob"]
        if row["record"]:
            yield row["record"]


def in_use(db: sqlite3.Connection, blob: str) -> bool:
    """Whether a version that is not purged needs this blob."""
    found = db.execute(
        f"SELECT 1 FROM versions WHERE blob = :blob AND gone = {FOREVER}"
        f" UNION ALL SELECT 1 FROM versions WHERE record = :blob AND record != '' AND gone = {FOREVER} LIMIT 1",
        {"blob": blob},
    ).fetchone()
    return found is not None


def condemned_us(db: sqlite3.Connection, blob: str) -> int | None:
    """The time at which a blob was condemned, by the log's time; None if it was not."""
    row = db.execute("SELECT condemned_us FROM condemned WHERE blob = ?", (blob,)).fetchone()
    return None if row is None else int(row["condemned_us"])


def check(db: sqlite3.Connection, blobs: Iterable[str]) -> None:
    """Raises Aborted (BLOB_CONDEMNED) for a blob that garbage collection will delete, or has deleted."""
    for blob in blobs:
        if condemned_us(db, blob) is not None:
            raise Aborted(
                "the upload waited too long for its commit and was condemned by garbage collection: upload it again",
                reason="BLOB_CONDEMNED",
                metadata={"blob": blob},
            )


def decide_condemn(db: sqlite3.Connection, command: CondemnBlobs) -> Sequence[Event] | Answer:
    used = [blob for blob in command.blobs if in_use(db, blob)]
    if used:
        raise FailedPrecondition(
            f"the blob {used[0]} is in use by a version",
            reason="BLOB_IN_USE",
            metadata={"blob": used[0], "count": str(len(used))},
        )
    blobs = [blob for blob in command.blobs if condemned_us(db, blob) is None]
    if not blobs:
        return Answer(value={})
    body = {"name": str(TenantName(command.tenant)), "peer": command.peer, "blobs": blobs}
    return [Event(kind=CONDEMNED, body=body)]


def apply_condemned(db: sqlite3.Connection, event: CommittedEvent) -> dict[str, int]:
    rows = [(blob, event.time_us) for blob in event.body["blobs"]]
    db.executemany("INSERT INTO condemned VALUES (?, ?) ON CONFLICT DO NOTHING", rows)
    return {"count": len(rows)}
