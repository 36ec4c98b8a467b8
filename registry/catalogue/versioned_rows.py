"""Versioned rows: a replaced row is kept for an hour, so that a list's later pages show the same state as its first.

Every table of this kind has `since`, the place in history from which a row is valid; `gone`, the place from which it is
no longer valid (FOREVER for a valid row); and `gone_us`, the time of the event at `gone`.
"""

import sqlite3
from collections.abc import Mapping
from typing import Any

from rpc.errors import OutOfRange
from storage.ledger.entry import MAX_EVENTS, Revision
from storage.ledger.state_machine import CommittedEvent

FOREVER = 2**62
NOW = FOREVER - 1  # a place after all events: the present state
KEPT_US = 3600 * 1_000_000

SCHEMA = """
CREATE TABLE horizon (place INTEGER NOT NULL);
INSERT INTO horizon VALUES (0)
"""
_TABLES = ("concepts", "versions", "aliases", "evaluations")

# Column definitions and the condition for `:at`, shared by all tables of this kind.
SPAN = f"since INTEGER NOT NULL, gone INTEGER NOT NULL DEFAULT {FOREVER}, gone_us INTEGER"
TRUE_THEN = "since <= :at AND gone > :at"


def place(revision: Revision) -> int:
    """A revision as one number, in the order of the shard's history."""
    return revision.entry * MAX_EVENTS + revision.index


def insert(db: sqlite3.Connection, table: str, row: Mapping[str, Any]) -> None:
    """Write a row, with its columns by name."""
    columns = ", ".join(row)
    values = ", ".join(f":{column}" for column in row)
    db.execute(f"INSERT INTO {table} ({columns}) VALUES ({values})", row)


def replace(db: sqlite3.Connection, table: str, key: Mapping[str, Any], event: CommittedEvent, **columns: Any) -> None:
    """End the valid row of `key`, and insert a copy of it with the new `columns`. At most once per event and key."""
    where = " AND ".join(f"{column} = :{column}" for column in key)
    row = dict(db.execute(f"SELECT * FROM {table} WHERE {where} AND gone = {FOREVER}", key).fetchone())
    end(db, table, key, event)
    insert(db, table, row | columns | {"since": place(event.revision)})


def end(db: sqlite3.Connection, table: str, key: Mapping[str, Any], event: CommittedEvent) -> None:
    """End all valid rows of `key` with this event."""
    where = " AND ".join(f"{column} = :{column}" for column in key)
    db.execute(
        f"UPDATE {table} SET gone = :here, gone_us = :now WHERE {where} AND gone = {FOREVER}",
        {**key, "here": place(event.revision), "now": event.time_us},
    )


def prune(db: sqlite3.Connection, now_us: int) -> None:
    """Delete rows that ended more than an hour before `now_us`, and store the place from which all rows are kept."""
    before = now_us - KEPT_US
    for table in _TABLES:
        last = db.execute(f"SELECT max(gone) FROM {table} WHERE gone_us <= ?", (before,)).fetchone()[0]
        if last is not None:
            db.execute(f"DELETE FROM {table} WHERE gone_us <= ?", (before,))
            db.execute("UPDATE horizon SET place = max(place, ?)", (last,))
    db.execute("DELETE FROM concept_labels WHERE left_us <= ?", (before,))


def check_kept(db: sqlite3.Connection, at: int) -> None:
    """Raises OutOfRange when rows that were valid at the place `at` have been deleted."""
    if at < db.execute("SELECT place FROM horizon").fetchone()[0]:
        raise OutOfRange("the page token is older than an hour: list again", reason="PAGE_TOKEN_EXPIRED")
