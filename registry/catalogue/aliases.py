"""Aliases: set, move, delete, roll back, each optionally with an etag."""

import sqlite3
from collections.abc import Sequence
from typing import Any

from pseudoword.names import AliasName, VersionName

from registry.catalogue import alias_table, concepts, versions
from registry.catalogue.alias_table import OF_ALIAS
from registry.catalogue.commands import DeleteAlias, RollbackAlias, SetAlias
from registry.catalogue.versioned_rows import FOREVER, NOW
from rpc.errors import Aborted, AlreadyExists, FailedPrecondition
from storage.ledger.state_machine import CommittedEvent, Event
from storage.sql import check_etag


def decide_set(db: sqlite3.Connection, command: SetAlias) -> Sequence[Event]:
    concept = concepts.get_active(db, command.name.parent)
    row = alias_table.find(db, command.name)
    if command.create_only and row is not None:
        raise AlreadyExists(
            f"{command.name} already exists", reason="ALIAS_EXISTS", metadata={"alias": str(command.name)}
        )
    _check_etag(command.etag, row, command.name)
    version = versions.get(db, command.version)
    if version["state"] == versions.YANKED:
        raise FailedPrecondition(
            f"{command.version} is yanked and no alias can be moved to it: unyank it first, or use another version",
            reason="VERSION_YANKED",
            metadata={"version": str(command.version)},
        )
    body = {"version": str(command.version), "reason": command.reason, "readers": concept["readers"]}
    return [Event(kind="alias-set", body={"name": str(command.name), "peer": command.peer, **body})]


def decide_delete(db: sqlite3.Connection, command: DeleteAlias) -> Sequence[Event]:
    concept = concepts.get_active(db, command.name.parent)
    _check_etag(command.etag, alias_table.get(db, command.name), command.name)
    body = {"reason": command.reason, "readers": concept["readers"]}
    return [Event(kind="alias-deleted", body={"name": str(command.name), "peer": command.peer, **body})]


def decide_rollback(db: sqlite3.Connection, command: RollbackAlias) -> Sequence[Event]:
    concept = concepts.get_active(db, command.name.parent)
    row = alias_table.get(db, command.name)
    _check_etag(command.etag, row, command.name)
    earlier = db.execute(
        f"SELECT version, restored FROM aliases AS a WHERE {OF_ALIAS} AND since < :restored"
        " AND version NOT IN (0, :now) AND EXISTS (SELECT 1 FROM versions AS v WHERE v.tenant = a.tenant"
        f" AND v.concept = a.concept AND v.number = a.version AND v.gone = {FOREVER}"
        f" AND v.state = '{versions.ACTIVE}') ORDER BY since DESC LIMIT 1",
        vars(command.name) | {"at": NOW, "restored": row["restored"], "now": row["version"]},
    ).fetchone()
    if earlier is None:
        raise FailedPrecondition(
            f"{command.name} has not pointed to another version before that is still in use: set the alias instead",
            reason="NO_EARLIER_VERSION",
            metadata={"alias": str(command.name)},
        )
    target = VersionName(command.name.tenant, command.name.concept, earlier["version"])
    body = {"version": str(target), "restored": earlier["restored"], "reason": command.reason}
    body |= {"name": str(command.name), "peer": command.peer, "readers": concept["readers"]}
    return [Event(kind="alias-set", body=body)]


def apply_set(db: sqlite3.Connection, event: CommittedEvent) -> dict[str, Any]:
    body = event.body
    name = AliasName.parse(body["name"])
    version = VersionName.parse(body["version"]).version
    alias_table.point(db, name.parent, name.alias, version, event, reason=body["reason"], restored=body.get("restored"))
    concepts.touch(db, name.parent, event)
    return alias_table.get(db, name)


def apply_deleted(db: sqlite3.Connection, event: CommittedEvent) -> dict[str, Any]:
    body = event.body
    name = AliasName.parse(body["name"])
    alias_table.point(db, name.parent, name.alias, 0, event, reason=body["reason"])
    concepts.touch(db, name.parent, event)
    return {}


def _check_etag(given: str, row: dict[str, Any] | None, name: AliasName) -> None:
    if row is not None:
        check_etag(given, row["etag"], str(name))
    elif given:
        raise Aborted(
            f"{name} was deleted since it was read: read it again",
            reason="ETAG_MISMATCH",
            metadata={"resource": str(name), "etag": ""},
        )
