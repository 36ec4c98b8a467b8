"""The log's events as a tenant's audit trail."""

import sqlite3
from collections.abc import Mapping
from typing import Any

from registry.catalogue.content import HIDDEN
from registry.catalogue.versioned_rows import place
from storage.ledger.entry import MAX_EVENTS
from storage.ledger.state_machine import CommittedEvent
from storage.ledger.view import change_of

__all__ = ["newest", "place"]


def newest(
    db: sqlite3.Connection,
    tenant: str,
    where: tuple[str, Mapping[str, Any]],
    before: int,
    limit: int,
    store_id: str,
    shard: int,
) -> list[CommittedEvent]:
    """Up to `limit` events of a tenant before the place `before`, newest first."""
    entry, index = divmod(before, MAX_EVENTS)
    rows = db.execute(
        "SELECT * FROM ledger_history WHERE tenant = :tenant AND (entry, idx) < (:entry, :index)"
        f" AND kind NOT IN {HIDDEN} AND {where[0]} ORDER BY entry DESC, idx DESC LIMIT :limit",
        {**where[1], "tenant": tenant, "entry": entry, "index": index, "limit": limit},
    )
    return [change_of(row, store_id, shard) for row in rows]
