"""Tenants: their quotas and usage."""

import sqlite3
from collections.abc import Sequence
from json import dumps
from typing import Any

from pseudoword.names import TenantName

from registry.catalogue.commands import CreateTenant, Quotas, UpdateTenant
from rpc.errors import AlreadyExists, NotFound, ResourceExhausted
from storage.ledger.state_machine import CommittedEvent, Event
from storage.sql import check_etag

SCHEMA = """
CREATE TABLE tenants (
    tenant TEXT PRIMARY KEY, display_name TEXT NOT NULL, quota_concepts INTEGER NOT NULL,
    quota_versions_per_concept INTEGER NOT NULL, quota_embedding_bytes INTEGER NOT NULL, concepts INTEGER NOT NULL,
    versions INTEGER NOT NULL, embedding_bytes INTEGER NOT NULL, create_us INTEGER NOT NULL, update_us INTEGER NOT NULL,
    etag TEXT NOT NULL) WITHOUT ROWID
"""


def find(db: sqlite3.Connection, tenant: str) -> dict[str, Any] | None:
    """A tenant's row; None when it does not exist."""
    row = db.execute("SELECT * FROM tenants WHERE tenant = ?", (tenant,)).fetchone()
    return None if row is None else dict(row)


def get(db: sqlite3.Connection, name: TenantName) -> dict[str, Any]:
    """A tenant's row. Raises NotFound."""
    row = find(db, name.tenant)
    if row is None:
        raise NotFound(f"{name} does not exist", reason="TENANT_NOT_FOUND", metadata={"tenant": str(name)})
    return row


def after(db: sqlite3.Connection, tenant: str, only: frozenset[str] | None, limit: int) -> list[dict[str, Any]]:
    """Up to `limit` tenants of this shard (in `only`, if given), sorted by name, after the name `tenant`."""
    rows = db.execute(
        "SELECT * FROM tenants WHERE tenant > ? AND (? IS NULL OR tenant IN (SELECT value FROM json_each(?)))"
        " ORDER BY tenant LIMIT ?",
        (tenant, *[None if only is None else dumps(sorted(only))] * 2, limit),
    )
    return [dict(row) for row in rows]


def decide_create(db: sqlite3.Connection, command: CreateTenant) -> Sequence[Event]:
    if find(db, command.name.tenant) is not None:
        raise AlreadyExists(
            f"{command.name} already exists", reason="TENANT_EXISTS", metadata={"tenant": str(command.name)}
        )
    return [created(command.name, command.peer, command.display_name, command.quotas)]


def created(name: TenantName, peer: str, display_name: str = "", quotas: Quotas | None = None) -> Event:
    """The event that creates a tenant."""
    fields = {"display_name": display_name, **vars(quotas or Quotas())}
    return Event(kind="tenant-created", body={"name": str(name), "peer": peer, "fields": fields})


def decide_update(db: sqlite3.Connection, command: UpdateTenant) -> Sequence[Event]:
    row = get(db, command.name)
    check_etag(command.etag, row["etag"], str(command.name))
    fields = {key.removeprefix("quota_"): row[key] for key in row if key == "display_name" or key.startswith("quota_")}
    body = {"name": str(command.name), "peer": command.peer, "fields": fields | dict(command.fields)}
    return [Event(kind="tenant-updated", body=body)]


def apply(db: sqlite3.Connection, event: CommittedEvent) -> dict[str, Any]:
    """Applies `tenant-created` and `tenant-updated`; the event's `fields` are the tenant's complete new fields."""
    body = event.body
    values = {**body["fields"], "tenant": TenantName.parse(body["name"]).tenant}
    values |= {"now": event.time_us, "etag": str(event.revision)}
    db.execute(
        "INSERT INTO tenants VALUES (:tenant, :display_name, :concepts, :versions_per_concept, :embedding_bytes,"
        " 0, 0, 0, :now, :now, :etag) ON CONFLICT (tenant) DO UPDATE SET display_name = excluded.display_name,"
        " quota_concepts = excluded.quota_concepts, quota_versions_per_concept = excluded.quota_versions_per_concept,"
        " quota_embedding_bytes = excluded.quota_embedding_bytes, update_us = excluded.update_us, etag = excluded.etag",
        values,
    )
    row = find(db, values["tenant"])
    assert row is not None
    return row


def use(db: sqlite3.Connection, tenant: str, *, concepts: int = 0, versions: int = 0, embedding_bytes: int = 0) -> None:
    """Add to a tenant's usage."""
    db.execute(
        "UPDATE tenants SET concepts = concepts + ?, versions = versions + ?, embedding_bytes = embedding_bytes + ?"
        " WHERE tenant = ?",
        (concepts, versions, embedding_bytes, tenant),
    )


def check_quota(row: dict[str, Any] | None, defaults: Quotas, quota: str, used: int, more: int, *, tenant: str) -> None:
    """Raises ResourceExhausted when `used` + `more` exceeds the tenant's `quota` (a member of Quotas)."""
    limit = (row[f"quota_{quota}"] if row is not None else 0) or getattr(defaults, quota)
    if used + more > limit:
        raise ResourceExhausted(
            f"tenants/{tenant} uses {used} of {limit} {quota.replace('_', ' ')}, and {more} more would exceed the "
            "quota: purge concepts that are not needed, or have the quota raised",
            reason="QUOTA_EXCEEDED",
            metadata={"quota": quota, "limit": str(limit), "used": str(used), "tenant": f"tenants/{tenant}"},
        )
