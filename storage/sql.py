"""SQL helpers that all state machines share: creating tables, checking an etag, reading a page."""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from storage.errors import EtagMismatch

# An SQL condition, and its parameters by name.
Condition = tuple[str, Mapping[str, Any]]
EVERYTHING: Condition = ("1", {})


def create_tables(db: sqlite3.Connection, schema: str) -> None:
    """Run the statements of `schema` within the view's transaction; `executescript` would end the transaction."""
    for statement in schema.split(";"):
        db.execute(statement)


def check_etag(given: str, present: str, resource: str) -> None:
    """Raises EtagMismatch when an etag is given and differs from the present one."""
    if given and given != present:
        raise EtagMismatch(resource, present)


def newest_first(
    db: sqlite3.Connection,
    table: str,
    tenant: str,
    after: Sequence[Any] | None,
    limit: int,
    condition: Condition = EVERYTHING,
) -> list[sqlite3.Row]:
    """Up to `limit` rows of a tenant that fulfil `condition`, newest first, after the row at [created_us, name]."""
    created_us, name = after or (2**62, "")
    sql, parameters = condition
    return db.execute(
        f"SELECT * FROM {table} WHERE tenant = :tenant AND (created_us < :created_us"
        f" OR (created_us = :created_us AND name > :name)) AND {sql} ORDER BY created_us DESC, name LIMIT :limit",
        {"tenant": tenant, "created_us": created_us, "name": name, "limit": limit, **parameters},
    ).fetchall()
