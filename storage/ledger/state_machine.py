"""The interface of a state machine, which defines the content of a ledger: which commands are allowed, and how each
event changes the tables.

One chain from a request to a row: `StateMachine.decide` turns a command into Events; the log keeps each as a
RecordedEvent, with its actor and request; `StateMachine.apply` writes it into the tables as a CommittedEvent, with its
revision and time.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

from storage.ledger.entry import RecordedEvent, Revision

C_contra = TypeVar("C_contra", contravariant=True)


@dataclass(frozen=True, kw_only=True)
class Event:
    """One change that a command makes. `body` is a JSON object with everything that is needed to apply the event
    again."""

    kind: str
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer (a JSON object) of a command that changes nothing. Its request id is not remembered."""

    value: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CommittedEvent(RecordedEvent):
    """An event with its revision. `time_us` is its entry's time, microseconds since 1970 UTC."""

    revision: Revision
    time_us: int

    @classmethod
    def of(cls, event: RecordedEvent, revision: Revision, time_us: int) -> Self:
        return cls(**vars(event), revision=revision, time_us=time_us)

    @property
    def recorded(self) -> RecordedEvent:
        """The event without revision and time."""
        fields = {name: value for name, value in vars(self).items() if name not in ("revision", "time_us")}
        return RecordedEvent(**fields)


class StateMachine(Protocol[C_contra]):
    """The rules of one kind of ledger. One thread per shard calls `create`, `decide` and `apply`; all state is in `db`.

    The view is derived: everything that `decide` reads and `apply` writes must follow from the log's events alone, so
    the tables hold no reading of a clock, no random number and nothing specific to this machine. No table's name may
    begin with `ledger_`; rows are sqlite3.Row.
    """

    @property
    def name(self) -> str:
        """Stored in the store's metadata: a store of another state machine is refused."""
        ...

    @property
    def schema_version(self) -> int:
        """Increment it with every change of the tables or of `apply`: views of another version are rebuilt."""
        ...

    def create(self, db: sqlite3.Connection) -> None:
        """Create the tables, empty."""
        ...

    def decide(self, db: sqlite3.Connection, command: C_contra, now_us: int) -> Sequence[Event] | Answer:
        """The events of `command`, given the state in `db`. Must not change `db`.

        `now_us` is the time that the entry will have. May run several times for one command. Refuses a command by
        raising an error of the state machine's own, which the caller of Ledger.commit gets.
        """
        ...

    def apply(self, db: sqlite3.Connection, event: CommittedEvent) -> dict[str, Any]:
        """Write one event into the tables; with the same result for the writer and for every replica that replays the
        log.

        Returns the answer (a JSON object) of a command that ends with this event. Never refuses.
        """
        ...

    def blobs(self, db: sqlite3.Connection) -> Iterable[str]:
        """Names of the blobs that the tables refer to, which must exist."""
        ...

    def doomed(self, db: sqlite3.Connection, blob: str) -> bool:
        """Whether a blob may be deleted, or may already be deleted, and will never be referred to again."""
        ...
