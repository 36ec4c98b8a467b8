"""The registry's state machine: dispatches each command and each event to its module."""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from registry.catalogue import alias_table, aliases, concepts, content, tenants, versioned_rows, versions
from registry.catalogue.commands import (
    Command,
    CondemnBlobs,
    CreateConcept,
    CreateEvaluation,
    CreateTenant,
    DeleteAlias,
    DeleteConcept,
    PublishVersion,
    PurgeConcept,
    Quotas,
    RollbackAlias,
    SetAlias,
    UndeleteConcept,
    UnyankVersion,
    UpdateConcept,
    UpdateTenant,
    YankVersion,
)
from storage.ledger.state_machine import Answer, CommittedEvent, Event
from storage.sql import create_tables

# A tenant's shard never changes, so the number of shards is fixed when a store is created.
SHARDS = 16
_APPLY: Mapping[str, Callable[[sqlite3.Connection, CommittedEvent], dict[str, Any]]] = {
    "tenant-created": tenants.apply,
    "tenant-updated": tenants.apply,
    "concept-created": concepts.apply_created,
    "concept-updated": concepts.apply_updated,
    "concept-deleted": concepts.apply_deleted,
    "concept-undeleted": concepts.apply_undeleted,
    "concept-purged": concepts.apply_purged,
    "version-published": versions.apply_published,
    "version-yanked": versions.apply_yanked,
    "version-unyanked": versions.apply_unyanked,
    "evaluation-created": versions.apply_evaluation,
    content.CONDEMNED: content.apply_condemned,
    content.TAKEN: concepts.apply_taken,
    "alias-set": aliases.apply_set,
    "alias-deleted": aliases.apply_deleted,
}


class CatalogueStateMachine:
    """A StateMachine. `quotas` are the default quotas of a tenant."""

    name = "registry"
    schema_version = 3

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas

    def create(self, db: sqlite3.Connection) -> None:
        """Create the tables, empty."""
        for module in (versioned_rows, tenants, concepts, versions, alias_table, content):
            create_tables(db, module.SCHEMA)

    def decide(self, db: sqlite3.Connection, command: Command, now_us: int) -> Sequence[Event] | Answer:
        """Raises NotFound, AlreadyExists, FailedPrecondition, Aborted (ETAG_MISMATCH), ResourceExhausted."""
        match command:
            case CreateTenant():
                return tenants.decide_create(db, command)
            case UpdateTenant():
                return tenants.decide_update(db, command)
            case CreateConcept():
                return concepts.decide_create(db, command, self._quotas)
            case UpdateConcept():
                return concepts.decide_update(db, command)
            case DeleteConcept():
                return concepts.decide_delete(db, command, now_us)
            case UndeleteConcept():
                return concepts.decide_undelete(db, command)
            case PurgeConcept():
                return concepts.decide_purge(db, command, now_us)
            case PublishVersion():
                return versions.decide_publish(db, command, self._quotas)
            case CondemnBlobs():
                return content.decide_condemn(db, command)
            case YankVersion():
                return versions.decide_yank(db, command)
            case UnyankVersion():
                return versions.decide_unyank(db, command)
            case CreateEvaluation():
                return versions.decide_evaluation(db, command)
            case SetAlias():
                return aliases.decide_set(db, command)
            case DeleteAlias():
                return aliases.decide_delete(db, command)
            case RollbackAlias():
                return aliases.decide_rollback(db, command)
        raise AssertionError(f"unknown command {type(command).__name__}")

    def apply(self, db: sqlite3.Connection, event: CommittedEvent) -> dict[str, Any]:
        """Write one event into the tables; the answer is the row that it has changed."""
        answer = _APPLY[event.kind](db, event)
        if event.revision.index == 0:
            # All events of an entry have the same time, so once per entry is enough.
            versioned_rows.prune(db, event.time_us)
        return answer

    def blobs(self, db: sqlite3.Connection) -> Iterator[str]:
        """The blobs of all versions that are not purged."""
        return content.named(db)

    def doomed(self, db: sqlite3.Connection, blob: str) -> bool:
        """Whether `blob` is condemned."""
        return content.condemned_us(db, blob) is not None
