"""The table of aliases: the version of each alias, and its earlier versions.

An alias's rows are its whole history: each is valid from its `since` to the next row's. Rows are removed only with
their concept. `latest` also has rows; they are written when a version is published, yanked or unyanked.
"""

import sqlite3
from typing import Any

from pseudoword.names import LATEST, AliasName, ConceptName

from registry.catalogue.versioned_rows import FOREVER, NOW, SPAN, TRUE_THEN, insert, place
from rpc.errors import NotFound
from storage.ledger.state_machine import CommittedEvent

# `version` 0: the alias was deleted. `restored` is the `since` of the row that a rollback restored, else the row's own
# `since`: the next rollback searches before it.
SCHEMA = f"""
CREATE TABLE aliases (
    tenant TEXT NOT NULL, concept TEXT NOT NULL, alias TEXT NOT NULL, {SPAN}, until INTEGER NOT NULL DEFAULT {FOREVER},
    time_us INTEGER NOT NULL, version INTEGER NOT NULL, previous INTEGER NOT NULL, restored INTEGER NOT NULL,
    actor TEXT NOT NULL, on_behalf_of TEXT NOT NULL, reason TEXT NOT NULL, etag TEXT NOT NULL,
    PRIMARY KEY (tenant, concept, alias, since)) WITHOUT ROWID;
CREATE INDEX aliases_gone ON aliases (gone_us, gone) WHERE gone_us IS NOT NULL;
CREATE INDEX aliases_version ON aliases (tenant, concept, version, until)
"""
OF_ALIAS = f"tenant = :tenant AND concept = :concept AND alias = :alias AND {TRUE_THEN}"


def find(db: sqlite3.Connection, name: AliasName, at: int = NOW) -> dict[str, Any] | None:
    """An alias's row as it was at the place `at`; None when it did not exist."""
    row = db.execute(
        f"SELECT * FROM aliases WHERE {OF_ALIAS} AND until > :at AND version > 0", vars(name) | {"at": at}
    ).fetchone()
    return None if row is None else dict(row)


def get(db: sqlite3.Connection, name: AliasName) -> dict[str, Any]:
    """An alias's row. Raises NotFound."""
    return _found(find(db, name), name)


def get_at(db: sqlite3.Connection, name: AliasName, time_us: int) -> dict[str, Any]:
    """An alias's row as it was at a time, microseconds since 1970 UTC. Raises NotFound."""
    row = db.execute(
        f"SELECT * FROM aliases WHERE {OF_ALIAS} AND time_us <= :time ORDER BY since DESC LIMIT 1",
        vars(name) | {"at": NOW, "time": time_us},
    ).fetchone()
    return _found(None if row is None or row["version"] == 0 else dict(row), name)


def page(db: sqlite3.Connection, name: ConceptName, at: int, after: str, limit: int) -> list[dict[str, Any]]:
    """Up to `limit` aliases as they were at the place `at`, sorted by name, after the name `after`."""
    rows = db.execute(
        f"SELECT * FROM aliases WHERE tenant = :tenant AND concept = :concept AND alias > :after AND {TRUE_THEN}"
        f" AND until > :at AND version > 0 AND alias != '{LATEST}' ORDER BY alias LIMIT :limit",
        vars(name) | {"at": at, "after": after, "limit": limit},
    )
    return [dict(row) for row in rows]


def history(db: sqlite3.Connection, name: AliasName, at: int, before: int, limit: int) -> list[dict[str, Any]]:
    """Up to `limit` moves up to the place `at`, newest first, made before the place `before`."""
    rows = db.execute(
        f"SELECT * FROM aliases WHERE {OF_ALIAS} AND since < :before ORDER BY since DESC LIMIT :limit",
        vars(name) | {"at": at, "before": before, "limit": limit},
    )
    return [dict(row) for row in rows]


def _found(row: dict[str, Any] | None, name: AliasName) -> dict[str, Any]:
    if row is None:
        raise NotFound(f"{name} does not exist", reason="ALIAS_NOT_FOUND", metadata={"alias": str(name)})
    return row


def point(
    db: sqlite3.Connection,
    concept: ConceptName,
    alias: str,
    version: int,
    event: CommittedEvent,
    *,
    reason: str = "",
    restored: int | None = None,
) -> None:
    """Point an alias to `version` (0: delete it) from this event on. `latest` gets a row only when it moves."""
    name = AliasName(concept.tenant, concept.concept, alias)
    row = find(db, name)
    previous = 0 if row is None else row["version"]
    if alias == LATEST and previous == version:
        return
    here = place(event.revision)
    db.execute(
        f"UPDATE aliases SET until = :here WHERE {OF_ALIAS} AND until = {FOREVER}",
        vars(name) | {"at": NOW, "here": here},
    )
    actors = {"actor": event.actor, "on_behalf_of": event.on_behalf_of, "etag": str(event.revision)}
    move = {"version": version, "previous": previous, "restored": here if restored is None else restored}
    insert(db, "aliases", vars(name) | actors | move | {"since": here, "time_us": event.time_us, "reason": reason})
