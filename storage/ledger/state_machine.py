"""What a ledger keeps is said by a state machine: which commands are allowed, and what each event does to its tables.

One chain from a request to a row: `StateMachine.decide` makes Events of a command; the log keeps each as a
RecordedEvent, with who asked for it; `StateMachine.apply` writes it into the tables as a CommittedEvent, with its place
in history.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

from storage.ledger.entry import RecordedEvent, Revision

C_contra = TypeVar("C_contra", contravariant=True)


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that a command makes happen: its kind, and all that is needed to apply it again, as a JSON object."""

    kind: str
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A command that changes nothing and still has an answer (a JSON object). Its request id is not remembered."""

    value: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CommittedEvent(RecordedEvent):
    """An event at its place in history; `time_us` is its entry's, microseconds since 1970 UTC."""

    revision: Revision
    time_us: int

    @classmethod
    def of(cls, event: RecordedEvent, revision: Revision, time_us: int) -> Self:
        return cls(**vars(event), revision=revision, time_us=time_us)

    @property
    def recorded(self) -> RecordedEvent:
        """The event without its place."""
        fields = {name: value for name, value in vars(self).items() if name not in ("revision", "time_us")}
        return RecordedEvent(**fields)


class StateMachine(Protocol[C_contra]):
    """The rules of one kind of ledger. One thread a shard calls `create`, `decide` and `apply`; all state is in `db`.

    The view is derived: whatever `decide` rests on and `apply` writes must follow from the log's changes alone, so the
    tables hold no clock, no random number and nothing of this machine. Tables are created without a name beginning with
    `ledger_`; rows come as sqlite3.Row.
    """

    @property
    def name(self) -> str:
        """Written into the store: a store of one book is refused by another."""
        ...

    @property
    def schema_version(self) -> int:
        """Raise it with every change of the tables or of `apply`: views of another version are made anew."""
        ...

    def create(self, db: sqlite3.Connection) -> None:
        """Make the tables, empty."""
        ...

    def decide(self, db: sqlite3.Connection, command: C_contra, now_us: int) -> Sequence[Event] | Answer:
        """Whether `command` is allowed after all that `db` shows, and what it does; changes nothing itself.

        `now_us` is the time that the entry will have. May run several times for one command. Refuses by raising an
        error of the book's own, which the caller of Ledger.commit gets.
        """
        ...

    def apply(self, db: sqlite3.Connection, event: CommittedEvent) -> dict[str, Any]:
        """Write one change into the tables; the same for the writer and for every replica that reads the log later.

        Gives the answer (a JSON object) of a command that ends with this change. Never refuses.
        """
        ...

    def blobs(self, db: sqlite3.Connection) -> Iterable[str]:
        """Names of the blobs that the tables refer to: those that must exist."""
        ...

    def doomed(self, db: sqlite3.Connection, blob: str) -> bool:
        """Whether the tables say that a blob may be deleted, or be gone already, and will never be referred to."""
        ...
