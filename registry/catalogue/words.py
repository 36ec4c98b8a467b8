"""Resolves a word to a version, for its owner and for tenants with a grant."""

import sqlite3
from dataclasses import dataclass
from typing import Any

from pseudoword.names import LATEST, PRODUCTION, AliasName, ConceptName, VersionName, WordRef

from registry.catalogue import alias_table, concepts, versions
from rpc.errors import NotFound, PermissionDenied


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """A version's row, and the alias that it was resolved by: empty when the word has a version number."""

    version: dict[str, Any]
    alias: str


def resolve(db: sqlite3.Connection, ref: WordRef, asking: str) -> Meaning:
    """The present meaning of `ref` in a prompt of the tenant `asking`.

    Raises NotFound; and PermissionDenied for another tenant's word without a grant, whether the word exists or not.
    """
    name = ConceptName(ref.tenant or asking, ref.concept)
    concept = concepts.find(db, name)
    if name.tenant != asking and (concept is None or not concepts.is_granted(concept, asking)):
        raise not_granted(name, asking)
    if concept is None:
        raise NotFound(f"the word <{ref}> does not exist", reason="WORD_NOT_FOUND", metadata={"word": str(ref)})
    if concept["state"] != concepts.ACTIVE:
        raise NotFound(f"the word <{ref}> was deleted", reason="WORD_DELETED", metadata={"word": str(ref)})
    number, alias = _number(db, name, ref)
    row = versions.find(db, VersionName(name.tenant, name.concept, number)) if number else None
    if row is None:
        raise _nothing(ref, concept)
    return Meaning(version=row, alias=alias)


def _number(db: sqlite3.Connection, name: ConceptName, ref: WordRef) -> tuple[int, str]:
    if ref.version is not None:
        return ref.version, ""
    for alias in (ref.alias,) if ref.alias is not None else (PRODUCTION, LATEST):
        row = alias_table.find(db, AliasName(name.tenant, name.concept, alias))
        if row is not None:
            return row["version"], alias
    return 0, ""


def not_granted(name: ConceptName, asking: str) -> PermissionDenied:
    """The same error for a word that does not exist, so that it does not reveal which words another tenant has."""
    return PermissionDenied(
        f"tenants/{asking} has no grant for {name}: the owner must add the tenant to the concept's readers",
        reason="WORD_NOT_GRANTED",
        metadata={"concept": str(name), "reader": f"tenants/{asking}"},
    )


def _nothing(ref: WordRef, concept: dict[str, Any]) -> NotFound:
    if ref.version is not None:
        why, reason = f"has no version {ref.version}", "VERSION_NOT_FOUND"
    elif ref.alias not in (None, LATEST):
        why, reason = f"has no alias {ref.alias}", "ALIAS_NOT_FOUND"
    else:
        why, reason = "has no version yet" if not concept["count"] else "has only yanked versions", "VERSION_NOT_FOUND"
    known = ", ".join(sorted({*concept["aliases"], *([LATEST] if concept["latest"] else [])}))
    message = f"the word <{ref.concept}> {why}" + (f"; its aliases: {known}" if reason == "ALIAS_NOT_FOUND" else "")
    return NotFound(message, reason=reason, metadata={"word": str(ref)})
