"""Rows that remember: a replaced row stays an hour, so that a list's later pages show what its first page showed.

Every table of this kind has `since`, the place in history from which its row is true; `gone`, the place from which it
is not any more (FOREVER for a row that is true now); and `gone_us`, that change's time.
"""

import sqlite3
from collections.abc import Mapping
from typing import Any

from rpc.errors import OutOfRange
from storage.ledger.entry import MAX_EVENTS, Revision
from storage.ledger.state_machine import CommittedEvent

FOREVER = 2**62
NOW = FOREVER - 1  # a place after all changes: what is true now
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
    """A revision as one number, ordered as the shard's history is."""
    return revision.entry * MAX_EVENTS + revision.index


def insert(db: sqlite3.Connection, table: str, row: Mapping[str, Any]) -> None:
    """Write a row, its columns by name."""
    columns = ", ".join(row)
    values = ", ".join(f":{column}" for column in row)
    db.execute(f"INSERT INTO {table} ({columns}) VALUES ({values})", row)


def replace(db: sqlite3.Connection, table: str, key: Mapping[str, Any], event: CommittedEvent, **columns: Any) -> None:
    """Let the row of `key` that is true now be followed by one with other `columns`. Once a change and key."""
    where = " AND ".join(f"{column} = :{column}" for column in key)
    row = dict(db.execute(f"SELECT * FROM {table} WHERE {where} AND gone = {FOREVER}", key).fetchone())
    end(db, table, key, event)
    insert(db, table, row | columns | {"since": place(event.revision)})


def end(db: sqlite3.Connection, table: str, key: Mapping[str, Any], event: CommittedEvent) -> None:
    """Let all rows of `key` end with this change."""
    where = " AND ".join(f"{column} = :{column}" for column in key)
    db.execute(
        f"UPDATE {table} SET gone = :here, gone_us = :now WHERE {where} AND gone = {FOREVER}",
        {**key, "here": place(event.revision), "now": event.time_us},
    )


def prune(db: sqlite3.Connection, now_us: int) -> None:
    """Remove rows that ended more than an hour before `now_us`, and remember from where on nothing is missing."""
    before = now_us - KEPT_US
    for table in _TABLES:
        last = db.execute(f"SELECT max(gone) FROM {table} WHERE gone_us <= ?", (before,)).fetchone()[0]
        if last is not None:
            db.execute(f"DELETE FROM {table} WHERE gone_us <= ?", (before,))
            db.execute("UPDATE horizon SET place = max(place, ?)", (last,))
    db.execute("DELETE FROM concept_labels WHERE left_us <= ?", (before,))


def check_kept(db: sqlite3.Connection, at: int) -> None:
    """Raises OutOfRange when rows that were true at the place `at` are gone."""
    if at < db.execute("SELECT place FROM horizon").fetchone()[0]:
        raise OutOfRange("this list's page is older than an hour: list again", reason="PAGE_TOKEN_EXPIRED")
