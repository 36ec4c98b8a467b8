"""Concepts: create, update, soft-delete, undelete, purge."""

import sqlite3
from collections.abc import Mapping, Sequence
from json import dumps, loads
from typing import Any

from pseudoword.names import LATEST, ConceptName, TenantName

from registry.catalogue import tenants
from registry.catalogue.commands import (
    ConceptFields,
    CreateConcept,
    DeleteConcept,
    PurgeConcept,
    Quotas,
    UndeleteConcept,
    UpdateConcept,
)
from registry.catalogue.versioned_rows import NOW, SPAN, TRUE_THEN, end, insert, place, replace
from rpc.errors import AlreadyExists, FailedPrecondition, NotFound
from storage.ledger.state_machine import CommittedEvent, Event
from storage.sql import check_etag

ACTIVE = "STATE_ACTIVE"
DELETED = "STATE_DELETED"
# Columns with an index, the most selective first.
INDEXES = ("display_name", "creator", "kind", "state")

# concept_labels is an index for filters: it has a row for each label of any kept row of a concept, so a match must
# still be checked against the row. `left_us`: the time at which the concept lost the label.
# `purged` keeps the name of a purged concept and its number of versions, so that neither is ever used again.
SCHEMA = f"""
CREATE TABLE concepts (
    tenant TEXT NOT NULL, concept TEXT NOT NULL, {SPAN}, state TEXT NOT NULL, kind TEXT NOT NULL,
    display_name TEXT NOT NULL, description TEXT NOT NULL, labels TEXT NOT NULL, readers TEXT NOT NULL,
    latest INTEGER NOT NULL, count INTEGER NOT NULL, creator TEXT NOT NULL, create_us INTEGER NOT NULL,
    update_us INTEGER NOT NULL, delete_us INTEGER, purge_us INTEGER, etag TEXT NOT NULL,
    PRIMARY KEY (tenant, concept, since)) WITHOUT ROWID;
CREATE INDEX concepts_gone ON concepts (gone_us, gone) WHERE gone_us IS NOT NULL;
CREATE INDEX concepts_creator ON concepts (tenant, creator, concept);
CREATE INDEX concepts_display_name ON concepts (tenant, display_name, concept);
CREATE INDEX concepts_kind ON concepts (tenant, kind, concept);
CREATE INDEX concepts_state ON concepts (tenant, state, concept);
CREATE TABLE concept_labels (
    tenant TEXT NOT NULL, label TEXT NOT NULL, text TEXT NOT NULL, concept TEXT NOT NULL, left_us INTEGER,
    PRIMARY KEY (tenant, label, text, concept)) WITHOUT ROWID;
CREATE INDEX concept_labels_left ON concept_labels (left_us) WHERE left_us IS NOT NULL;
CREATE INDEX concept_labels_of ON concept_labels (tenant, concept);
CREATE TABLE purged (
    tenant TEXT NOT NULL, concept TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (tenant, concept)) WITHOUT ROWID
"""


def find(db: sqlite3.Connection, name: ConceptName, at: int = NOW) -> dict[str, Any] | None:
    """A concept's row as it was at the place `at`, with `labels`, `readers` and `aliases` decoded."""
    row = db.execute(
        f"SELECT * FROM concepts WHERE tenant = :tenant AND concept = :concept AND {TRUE_THEN}",
        {"tenant": name.tenant, "concept": name.concept, "at": at},
    ).fetchone()
    return None if row is None else _read(db, row, at)


def get(db: sqlite3.Connection, name: ConceptName) -> dict[str, Any]:
    """A concept's row, soft-deleted or not. Raises NotFound."""
    row = find(db, name)
    if row is None:
        raise NotFound(f"{name} does not exist", reason="CONCEPT_NOT_FOUND", metadata={"concept": str(name)})
    return row


def get_active(db: sqlite3.Connection, name: ConceptName) -> dict[str, Any]:
    """A concept's row. Raises NotFound, and FailedPrecondition when it is soft-deleted."""
    row = get(db, name)
    if row["state"] != ACTIVE:
        raise FailedPrecondition(
            f"{name} is soft-deleted: undelete it first", reason="CONCEPT_DELETED", metadata={"concept": str(name)}
        )
    return row


def is_granted(row: Mapping[str, Any], tenant: str) -> bool:
    """Whether another tenant may use the word of a concept's row in prompts."""
    return row["state"] == ACTIVE and str(TenantName(tenant)) in row["readers"]


def page(
    db: sqlite3.Connection,
    tenant: str,
    where: tuple[str, Mapping[str, Any]],
    at: int,
    after: str,
    limit: int,
    *,
    label: tuple[str, str] | None = None,
    index: str | None = None,
) -> list[dict[str, Any]]:
    """Up to `limit` concepts as they were at the place `at`, sorted by name, after the name `after`.

    To read only a part of the rows: `label`, a label that `where` requires, or `index`, one of INDEXES whose column
    must be equal to `where`'s parameter `:indexed`.
    """
    source, more, order = "concepts", "AND concept > :after", "concept"
    if label is not None:
        # The unary plus keeps the planner from scanning all concepts after the labelled one.
        source = (
            "(SELECT concept AS labelled FROM concept_labels WHERE tenant = :tenant AND label = :label"
            " AND text = :text AND concept > :after) CROSS JOIN concepts ON concept = +labelled"
        )
        more, order = "", "labelled"
    elif index is not None:
        source, more = f"concepts INDEXED BY concepts_{index}", f"{more} AND {index} = :indexed"
    rows = db.execute(
        f"SELECT concepts.* FROM {source} WHERE tenant = :tenant {more} AND {TRUE_THEN}"
        f" AND {where[0]} ORDER BY {order} LIMIT :limit",
        {
            **where[1],
            "tenant": tenant,
            "after": after,
            "at": at,
            "limit": limit,
            "label": label and label[0],
            "text": label and label[1],
        },
    )
    return [_read(db, row, at) for row in rows]


def _read(db: sqlite3.Connection, row: sqlite3.Row, at: int) -> dict[str, Any]:
    pointing = db.execute(
        "SELECT alias, version FROM aliases WHERE tenant = :tenant AND concept = :concept AND until > :at"
        f" AND {TRUE_THEN} AND version > 0 AND alias != '{LATEST}' ORDER BY alias",
        {"tenant": row["tenant"], "concept": row["concept"], "at": at},
    )
    found = dict(row) | {"labels": loads(row["labels"]), "readers": loads(row["readers"])}
    found["aliases"] = {alias["alias"]: alias["version"] for alias in pointing}
    return found


def decide_create(db: sqlite3.Connection, command: CreateConcept, defaults: Quotas) -> Sequence[Event]:
    return creation(db, command.name, command.fields, defaults, command.peer)


def creation(
    db: sqlite3.Connection, name: ConceptName, fields: ConceptFields, defaults: Quotas, peer: str
) -> list[Event]:
    """The events that create a concept, and its tenant if that is missing. Raises AlreadyExists, ResourceExhausted."""
    row = find(db, name)
    if row is not None:
        deleted = row["state"] == DELETED
        raise AlreadyExists(
            f"{name} already exists" + (" and is soft-deleted: undelete it, or use another name" if deleted else ""),
            reason="CONCEPT_EXISTS",
            metadata={"concept": str(name), "state": row["state"].removeprefix("STATE_")},
        )
    if is_purged(db, name):
        raise AlreadyExists(
            f"{name} was purged and its name cannot be used again: use another name",
            reason="CONCEPT_EXISTS",
            metadata={"concept": str(name), "state": "PURGED"},
        )
    tenant = tenants.find(db, name.tenant)
    used = tenant["concepts"] if tenant is not None else 0
    tenants.check_quota(tenant, defaults, "concepts", used, 1, tenant=name.tenant)
    events = [] if tenant is not None else [tenants.created(TenantName(name.tenant), peer)]
    events.append(Event(kind="concept-created", body={"name": str(name), "peer": peer, **_body(vars(fields))}))
    return events


def is_purged(db: sqlite3.Connection, name: ConceptName) -> bool:
    """Whether a concept of this name existed and was purged."""
    key = (name.tenant, name.concept)
    return db.execute("SELECT 1 FROM purged WHERE tenant = ? AND concept = ?", key).fetchone() is not None


def decide_update(db: sqlite3.Connection, command: UpdateConcept) -> Sequence[Event]:
    row = get_active(db, command.name)
    check_etag(command.etag, row["etag"], str(command.name))
    fields = {key: row[key] for key in ConceptFields.__dataclass_fields__} | dict(command.fields)
    body = {"name": str(command.name), "peer": command.peer, **_body(fields)}
    return [Event(kind="concept-updated", body=body)]


def decide_delete(db: sqlite3.Connection, command: DeleteConcept, now_us: int) -> Sequence[Event]:
    row = get_active(db, command.name)
    check_etag(command.etag, row["etag"], str(command.name))
    body = {"name": str(command.name), "peer": command.peer, "purge_us": now_us + command.kept_us}
    return [Event(kind="concept-deleted", body=body | {"readers": row["readers"]})]


def decide_undelete(db: sqlite3.Connection, command: UndeleteConcept) -> Sequence[Event]:
    row = get(db, command.name)
    if row["state"] != DELETED:
        raise FailedPrecondition(
            f"{command.name} is not deleted", reason="CONCEPT_ACTIVE", metadata={"concept": str(command.name)}
        )
    check_etag(command.etag, row["etag"], str(command.name))
    body = {"name": str(command.name), "peer": command.peer, "readers": row["readers"]}
    return [Event(kind="concept-undeleted", body=body)]


def decide_purge(db: sqlite3.Connection, command: PurgeConcept, now_us: int) -> Sequence[Event]:
    row = get(db, command.name)
    if row["state"] != DELETED:
        raise FailedPrecondition(
            f"{command.name} is not deleted: delete it first",
            reason="CONCEPT_ACTIVE",
            metadata={"concept": str(command.name)},
        )
    if now_us < row["purge_us"] and not command.force:
        raise FailedPrecondition(
            f"{command.name} cannot be purged before its purge_time: wait, or set force",
            reason="CONCEPT_KEPT",
            metadata={"concept": str(command.name)},
        )
    return [Event(kind="concept-purged", body={"name": str(command.name), "peer": command.peer, "readers": []})]


def apply_created(db: sqlite3.Connection, event: CommittedEvent) -> dict[str, Any]:
    body = event.body
    name = ConceptName.parse(body["name"])
    row = {key: body[key] for key in ("display_name", "description", "kind")}
    row |= {"tenant": name.tenant, "concept": name.concept, "since": place(event.revision), "state": ACTIVE}
    row |= {"labels": dumps(body["labels"]), "readers": dumps(body["readers"]), "latest": 0, "count": 0}
    row |= {"creator": event.on_behalf_of or event.actor, "etag": str(event.revision)}
    row |= {"create_us": event.time_us, "update_us": event.time_us}
    insert(db, "concepts", row)
    _label(db, name, body["labels"], event)
    tenants.use(db, name.tenant, concepts=1)
    return get(db, name)


def apply_updated(db: sqlite3.Connection, event: CommittedEvent) -> dict[str, Any]:
    body = event.body
    _label(db, ConceptName.parse(body["name"]), body["labels"], event)
    return _alter(
        db,
        event,
        etag=str(event.revision),
        display_name=body["display_name"],
        description=body["description"],
        labels=dumps(body["labels"]),
        readers=dumps(body["readers"]),
    )


def apply_deleted(db: sqlite3.Connection, event: CommittedEvent) -> dict[str, Any]:
    purge_us = event.body["purge_us"]
    return _alter(db, event, etag=str(event.revision), state=DELETED, delete_us=event.time_us, purge_us=purge_us)


def apply_undeleted(db: sqlite3.Connection, event: CommittedEvent) -> dict[str, Any]:
    return _alter(db, event, etag=str(event.revision), state=ACTIVE, delete_us=None, purge_us=None)


def apply_purged(db: sqlite3.Connection, event: CommittedEvent) -> dict[str, Any]:
    """Ends all rows of the concept; garbage collection deletes its blobs later."""
    name = ConceptName.parse(event.body["name"])
    key = {"tenant": name.tenant, "concept": name.concept}
    count = get(db, name)["count"]
    size = db.execute(
        f"SELECT sum(size) FROM versions WHERE tenant = :tenant AND concept = :concept AND {TRUE_THEN}",
        key | {"at": NOW},
    ).fetchone()[0]
    for table in ("concepts", "versions", "aliases", "evaluations"):
        end(db, table, key, event)
    _label(db, name, {}, event)
    insert(db, "purged", key | {"count": count})
    tenants.use(db, name.tenant, concepts=-1, versions=-count, embedding_bytes=-(size or 0))
    return {}


def apply_taken(db: sqlite3.Connection, event: CommittedEvent) -> dict[str, Any]:
    """Keeps the names and version counts of purged concepts."""
    for name, count in event.body["concepts"].items():
        insert(db, "purged", vars(ConceptName.parse(name)) | {"count": count})
    return {}


def touch(db: sqlite3.Connection, name: ConceptName, event: CommittedEvent, **columns: Any) -> None:
    """Updates the concept's row after a change of one of its versions or aliases."""
    key = {"tenant": name.tenant, "concept": name.concept}
    replace(db, "concepts", key, event, update_us=event.time_us, **columns)


def _label(db: sqlite3.Connection, name: ConceptName, labels: Mapping[str, str], event: CommittedEvent) -> None:
    """Set the concept's labels from this event on."""
    key = (name.tenant, name.concept)
    db.execute(
        # The planner would use the primary key, and scan all labels of the tenant.
        "UPDATE concept_labels INDEXED BY concept_labels_of SET left_us = ?"
        " WHERE tenant = ? AND concept = ? AND left_us IS NULL",
        (event.time_us, *key),
    )
    db.executemany(
        "INSERT INTO concept_labels (tenant, concept, label, text) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET left_us = NULL",
        [(*key, label, text) for label, text in labels.items()],
    )


def _alter(db: sqlite3.Connection, event: CommittedEvent, **columns: Any) -> dict[str, Any]:
    name = ConceptName.parse(event.body["name"])
    touch(db, name, event, **columns)
    return get(db, name)


def _body(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {**fields, "labels": dict(fields["labels"]), "readers": list(fields["readers"])}
