"""Digests of the tables of a view: equal exactly when the rows are equal."""

import hashlib
import sqlite3


def digests(db: sqlite3.Connection) -> dict[str, str]:
    """sha256 (hex) of each table's rows, sorted by all columns."""
    tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    return {str(row[0]): _digest(db, str(row[0])) for row in tables.fetchall()}


def _digest(db: sqlite3.Connection, table: str) -> str:
    columns = [str(row[1]) for row in db.execute(f"PRAGMA table_info({table})")]
    digest = hashlib.sha256(repr(columns).encode())
    for row in db.execute(f"SELECT * FROM {table} ORDER BY {', '.join(columns)}"):
        digest.update(repr(tuple(row)).encode())
    return digest.hexdigest()
