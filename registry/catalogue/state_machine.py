"""The registry's Book: which table each command and each change is a matter of."""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from registry.catalogue import alias_table as pointers
from registry.catalogue import aliases, concepts, content, tenants, versions
from registry.catalogue import versioned_rows as rows
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
from storage.ledger.state_machine import Answer, Change, Effect

_APPLY: Mapping[str, Callable[[sqlite3.Connection, Change], dict[str, Any]]] = {
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
    """A storage.Book. `quotas` are what a tenant may keep unless it has quotas of its own."""

    name = "registry"
    schema_version = 3

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas

    def create(self, db: sqlite3.Connection) -> None:
        """Make the tables, empty."""
        for module in (rows, tenants, concepts, versions, pointers, content):
            for statement in module.SCHEMA.split(";"):
                db.execute(statement)

    def decide(self, db: sqlite3.Connection, command: Command, now_us: int) -> Sequence[Effect] | Answer:
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
        raise AssertionError(f"no command is called {type(command).__name__}")

    def apply(self, db: sqlite3.Connection, change: Change) -> dict[str, Any]:
        """Write one change into the tables; the answer is the row that it is about."""
        answer = _APPLY[change.mutation.kind](db, change)
        if change.revision.index == 0:
            # An entry has one time.
            rows.prune(db, change.time_us)
        return answer

    def blobs(self, db: sqlite3.Connection) -> Iterator[str]:
        """The blobs of all versions that are not purged."""
        return content.named(db)

    def doomed(self, db: sqlite3.Connection, blob: str) -> bool:
        """Whether the collector has condemned `blob`."""
        return content.condemned_us(db, blob) is not None
