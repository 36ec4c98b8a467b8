"""The report of an inspection."""

from dataclasses import dataclass, field
from enum import StrEnum


class Severity(StrEnum):
    """DAMAGE: committed data is lost or wrong. DERIVED: an object made from the log is wrong; it can be deleted.
    GARBAGE: an object that is not needed. NOTE: information."""

    DAMAGE = "damage"
    DERIVED = "derived"
    GARBAGE = "garbage"
    NOTE = "note"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`object`: the object's name in the store, or a view's path."""

    severity: Severity
    object: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """A version's statement about its blob: the size in bytes, and the digest of the tensors."""

    size: int
    tensors_digest: str


@dataclass(kw_only=True)
class Report:
    """`counts`: the objects that were read, by kind. `findings`: their faults. `revisions`: each shard's last entry."""

    store: str
    store_id: str
    book: str
    created: str
    revisions: list[int] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether no finding is DAMAGE or DERIVED."""
        return not any(found.severity in (Severity.DAMAGE, Severity.DERIVED) for found in self.findings)

    def found(self, severity: Severity, name: str, why: str) -> None:
        self.findings.append(Finding(severity=severity, object=name, why=why))

    def count(self, kind: str, more: int = 1) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + more
