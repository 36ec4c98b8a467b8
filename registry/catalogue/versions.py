"""Versions and their evaluations: publish, yank, unyank. A concept's versions are numbered 1, 2, 3, ...; no number is
used twice."""

import sqlite3
from collections.abc import Mapping, Sequence
from json import dumps, loads
from typing import Any

from pseudoword.names import LATEST, ConceptName, EvaluationName, VersionName

from registry.catalogue import alias_table, concepts, content, tenants
from registry.catalogue.commands import CreateEvaluation, PublishVersion, Quotas, UnyankVersion, YankVersion
from registry.catalogue.versioned_rows import NOW, SPAN, TRUE_THEN, insert, place, replace
from rpc.errors import AlreadyExists, FailedPrecondition, NotFound
from storage.ledger.state_machine import Answer, CommittedEvent, Event
from storage.sql import check_etag

ACTIVE = "STATE_ACTIVE"
YANKED = "STATE_YANKED"

SCHEMA = f"""
CREATE TABLE versions (
    tenant TEXT NOT NULL, concept TEXT NOT NULL, number INTEGER NOT NULL, {SPAN}, state TEXT NOT NULL,
    yank_reason TEXT NOT NULL, family TEXT NOT NULL, origin TEXT NOT NULL, labels TEXT NOT NULL, summary TEXT NOT NULL,
    blob TEXT NOT NULL, blob_digest TEXT NOT NULL, size INTEGER NOT NULL, tensors_digest TEXT NOT NULL,
    record TEXT NOT NULL, creator TEXT NOT NULL, create_us INTEGER NOT NULL, etag TEXT NOT NULL,
    PRIMARY KEY (tenant, concept, number, since)) WITHOUT ROWID;
CREATE INDEX versions_gone ON versions (gone_us, gone) WHERE gone_us IS NOT NULL;
CREATE TABLE jobs (
    tenant TEXT NOT NULL, job TEXT NOT NULL, concept TEXT NOT NULL, number INTEGER NOT NULL,
    PRIMARY KEY (tenant, job)) WITHOUT ROWID;
CREATE TABLE evaluations (
    tenant TEXT NOT NULL, concept TEXT NOT NULL, number INTEGER NOT NULL, evaluation TEXT NOT NULL, {SPAN},
    body TEXT NOT NULL, creator TEXT NOT NULL, create_us INTEGER NOT NULL,
    PRIMARY KEY (tenant, concept, number, evaluation)) WITHOUT ROWID;
CREATE INDEX evaluations_newest ON evaluations (tenant, concept, number, since);
CREATE INDEX evaluations_gone ON evaluations (gone_us, gone) WHERE gone_us IS NOT NULL
"""


def find(db: sqlite3.Connection, name: VersionName) -> dict[str, Any] | None:
    """A version's row, with `summary` and `aliases` decoded; None when it does not exist."""
    row = db.execute(
        f"SELECT * FROM versions WHERE tenant = :tenant AND concept = :concept AND number = :number AND {TRUE_THEN}",
        {**_key(name), "at": NOW},
    ).fetchone()
    return None if row is None else _read(db, row, NOW)


def get(db: sqlite3.Connection, name: VersionName) -> dict[str, Any]:
    """A version's row. Raises NotFound."""
    row = find(db, name)
    if row is None:
        raise NotFound(f"{name} does not exist", reason="VERSION_NOT_FOUND", metadata={"version": str(name)})
    return row


def page(
    db: sqlite3.Connection, name: ConceptName, where: tuple[str, Mapping[str, Any]], at: int, before: int, limit: int
) -> list[dict[str, Any]]:
    """Up to `limit` versions as they were at the place `at`, newest first, with numbers below `before`."""
    rows = db.execute(
        "SELECT * FROM versions WHERE tenant = :tenant AND concept = :concept AND number < :before"
        f" AND {TRUE_THEN} AND {where[0]} ORDER BY number DESC LIMIT :limit",
        {**where[1], "tenant": name.tenant, "concept": name.concept, "before": before, "at": at, "limit": limit},
    )
    return [_read(db, row, at) for row in rows]


def _read(db: sqlite3.Connection, row: sqlite3.Row, at: int) -> dict[str, Any]:
    pointing = db.execute(
        "SELECT alias FROM aliases WHERE tenant = :tenant AND concept = :concept AND version = :number AND until > :at"
        f" AND {TRUE_THEN} AND alias != '{LATEST}' ORDER BY alias",
        {"tenant": row["tenant"], "concept": row["concept"], "number": row["number"], "at": at},
    )
    found = dict(row) | {"summary": loads(row["summary"]), "aliases": [alias["alias"] for alias in pointing]}
    del found["labels"]  # the summary has them
    return found


def decide_publish(db: sqlite3.Connection, command: PublishVersion, defaults: Quotas) -> Sequence[Event] | Answer:
    name = command.concept
    if command.job:
        published = _of_job(db, name.tenant, command.job)
        if published is not None:
            return Answer(value=published)
    events: list[Event] = []
    row = concepts.find(db, name)
    if row is None and command.create is not None:
        events = concepts.creation(db, name, command.create, defaults, command.peer)
        count = 0
    else:
        count = concepts.get_active(db, name)["count"]
    tenant = tenants.find(db, name.tenant)
    used = tenant["embedding_bytes"] if tenant is not None else 0
    tenants.check_quota(tenant, defaults, "versions_per_concept", count, 1, tenant=name.tenant)
    tenants.check_quota(tenant, defaults, "embedding_bytes", used, command.size, tenant=name.tenant)
    content.check(db, (command.blob, command.record))
    body = {key: getattr(command, key) for key in ("job", "blob", "blob_digest", "size", "tensors_digest", "record")}
    version = VersionName(name.tenant, name.concept, count + 1)
    body |= {"name": str(version), "peer": command.peer, "summary": dict(command.summary)}
    return [*events, Event(kind="version-published", body=body)]


def _of_job(db: sqlite3.Connection, tenant: str, job: str) -> dict[str, Any] | None:
    """The version that a job has published; None when it has not. Raises FailedPrecondition when it was purged."""
    row = db.execute("SELECT concept, number FROM jobs WHERE tenant = ? AND job = ?", (tenant, job)).fetchone()
    if row is None:
        return None
    name = VersionName(tenant, row["concept"], row["number"])
    found = find(db, name)
    if found is None:
        raise FailedPrecondition(
            f"{job} was published as {name}, which was purged: create a new job",
            reason="VERSION_PURGED",
            metadata={"job": job, "version": str(name)},
        )
    return found


def apply_published(db: sqlite3.Connection, event: CommittedEvent) -> dict[str, Any]:
    body = event.body
    name = VersionName.parse(body["name"])
    summary = body["summary"]
    row = {key: body[key] for key in ("blob", "blob_digest", "size", "tensors_digest", "record")}
    row |= _key(name) | {"since": place(event.revision), "state": ACTIVE, "yank_reason": ""}
    row |= {"family": summary.get("base_model", {}).get("family", ""), "summary": dumps(summary)}
    row |= {"origin": summary.get("provenance", {}).get("origin", "ORIGIN_UNSPECIFIED")}
    row |= {"labels": dumps(summary.get("labels", {})), "etag": str(event.revision)}
    row |= {"creator": event.on_behalf_of or event.actor, "create_us": event.time_us}
    insert(db, "versions", row)
    if body["job"]:
        insert(db, "jobs", {"tenant": name.tenant, "job": body["job"], "concept": name.concept, "number": name.version})
    tenants.use(db, name.tenant, versions=1, embedding_bytes=body["size"])
    # A new version has the highest number and is active, so it is `latest`.
    concepts.touch(db, name.parent, event, latest=name.version, count=name.version)
    alias_table.point(db, name.parent, LATEST, name.version, event)
    return get(db, name)


def decide_yank(db: sqlite3.Connection, command: YankVersion) -> Sequence[Event]:
    concepts.get_active(db, command.name.parent)
    row = get(db, command.name)
    check_etag(command.etag, row["etag"], str(command.name))
    if row["aliases"]:
        raise FailedPrecondition(
            f"{command.name} has the alias {', '.join(row['aliases'])}: move or delete it first",
            reason="VERSION_ALIASED",
            metadata={"version": str(command.name), "aliases": ",".join(row["aliases"])},
        )
    body = {"name": str(command.name), "peer": command.peer, "reason": command.reason}
    return [Event(kind="version-yanked", body=body)]


def decide_unyank(db: sqlite3.Connection, command: UnyankVersion) -> Sequence[Event]:
    concepts.get_active(db, command.name.parent)
    row = get(db, command.name)
    check_etag(command.etag, row["etag"], str(command.name))
    if row["state"] != YANKED:
        raise FailedPrecondition(
            f"{command.name} is not yanked", reason="VERSION_NOT_YANKED", metadata={"version": str(command.name)}
        )
    return [Event(kind="version-unyanked", body={"name": str(command.name), "peer": command.peer})]


def apply_yanked(db: sqlite3.Connection, event: CommittedEvent) -> dict[str, Any]:
    return _apply_state(db, event, YANKED, event.body["reason"])


def apply_unyanked(db: sqlite3.Connection, event: CommittedEvent) -> dict[str, Any]:
    return _apply_state(db, event, ACTIVE, "")


def _apply_state(db: sqlite3.Connection, event: CommittedEvent, state: str, reason: str) -> dict[str, Any]:
    name = VersionName.parse(event.body["name"])
    replace(db, "versions", _key(name), event, state=state, yank_reason=reason, etag=str(event.revision))
    latest = db.execute(
        "SELECT max(number) FROM versions WHERE tenant = :tenant AND concept = :concept"
        f" AND {TRUE_THEN} AND state = '{ACTIVE}'",
        {**_key(name), "at": NOW},
    ).fetchone()[0]
    concepts.touch(db, name.parent, event, latest=latest or 0)
    alias_table.point(db, name.parent, LATEST, latest or 0, event)
    return get(db, name)


def decide_evaluation(db: sqlite3.Connection, command: CreateEvaluation) -> Sequence[Event]:
    concepts.get_active(db, command.name.parent.parent)
    get(db, command.name.parent)
    if find_evaluation(db, command.name) is not None:
        raise AlreadyExists(
            f"{command.name} already exists", reason="EVALUATION_EXISTS", metadata={"evaluation": str(command.name)}
        )
    body = {"name": str(command.name), "peer": command.peer, "evaluation": dict(command.evaluation)}
    return [Event(kind="evaluation-created", body=body)]


def apply_evaluation(db: sqlite3.Connection, event: CommittedEvent) -> dict[str, Any]:
    body = event.body
    name = EvaluationName.parse(body["name"])
    row = _key(name.parent) | {"evaluation": name.evaluation, "since": place(event.revision)}
    row |= {"body": dumps(body["evaluation"]), "creator": event.on_behalf_of or event.actor}
    insert(db, "evaluations", row | {"create_us": event.time_us})
    return get_evaluation(db, name)


def find_evaluation(db: sqlite3.Connection, name: EvaluationName) -> dict[str, Any] | None:
    """An evaluation's row; None when it does not exist."""
    row = db.execute(
        "SELECT * FROM evaluations WHERE tenant = :tenant AND concept = :concept AND number = :number"
        f" AND evaluation = :evaluation AND {TRUE_THEN}",
        {**_key(name.parent), "evaluation": name.evaluation, "at": NOW},
    ).fetchone()
    return None if row is None else _read_evaluation(row)


def get_evaluation(db: sqlite3.Connection, name: EvaluationName) -> dict[str, Any]:
    """An evaluation's row. Raises NotFound."""
    row = find_evaluation(db, name)
    if row is None:
        raise NotFound(f"{name} does not exist", reason="EVALUATION_NOT_FOUND", metadata={"evaluation": str(name)})
    return row


def evaluations(db: sqlite3.Connection, name: VersionName, at: int, before: int, limit: int) -> list[dict[str, Any]]:
    """Up to `limit` evaluations as they were at the place `at`, newest first, created before the place `before`."""
    rows = db.execute(
        "SELECT * FROM evaluations WHERE tenant = :tenant AND concept = :concept AND number = :number"
        f" AND since < :before AND {TRUE_THEN} ORDER BY since DESC LIMIT :limit",
        {**_key(name), "before": before, "at": at, "limit": limit},
    )
    return [_read_evaluation(row) for row in rows]


def _read_evaluation(row: sqlite3.Row) -> dict[str, Any]:
    return dict(row) | {"body": loads(row["body"])}


def _key(name: VersionName) -> dict[str, Any]:
    return {"tenant": name.tenant, "concept": name.concept, "number": name.version}
