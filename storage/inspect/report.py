"""What is found when a store is inspected."""

from dataclasses import dataclass, field
from enum import StrEnum


class Severity(StrEnum):
    """DAMAGE: something that was committed is lost or wrong. DERIVED: something made from the log is wrong; it can be
    deleted. GARBAGE: nobody needs it. NOTE: worth knowing."""

    DAMAGE = "damage"
    DERIVED = "derived"
    GARBAGE = "garbage"
    NOTE = "note"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`object`: its name in the store, or a view's path."""

    severity: Severity
    object: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """What a version says of a blob: its size in bytes, and the digest of its tensors."""

    size: int
    tensors_digest: str


@dataclass(kw_only=True)
class Report:
    """What was read, by kind of object, and what was found. `revisions`: the last entry of each shard."""

    store: str
    store_id: str
    book: str
    created: str
    revisions: list[int] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Nothing is damaged, and nothing derived is wrong."""
        return not any(found.severity in (Severity.DAMAGE, Severity.DERIVED) for found in self.findings)

    def found(self, severity: Severity, name: str, why: str) -> None:
        self.findings.append(Finding(severity=severity, object=name, why=why))

    def count(self, kind: str, more: int = 1) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + more
