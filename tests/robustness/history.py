"""What clients of a registry asked and were answered, and what watchers were told: the evidence that is judged."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OK = "OK"
# It may have been done, or be done later, or never.
UNKNOWN = "UNKNOWN"
# It was certainly not done.
NOTHING = "NOTHING"


@dataclass(kw_only=True)
class Operation:
    """One thing that one client wanted, however often it asked.

    `call` and `end` in nanoseconds of one monotonic clock, around the first question and the last answer. `result` is
    OK, a refusal's reason, UNKNOWN or NOTHING. `stale`: an old answer was allowed. `again`: what the same request was
    answered when it was asked once more, after its answer.
    """

    client: int
    concept: str
    kind: str
    input: dict[str, Any]
    call: int
    request_id: str = ""
    end: int = 0
    result: str = UNKNOWN
    output: dict[str, Any] = field(default_factory=dict)
    revision: str = ""
    stale: bool = False
    again: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Told:
    """One message of a watch: an event, or (`revision` empty) a bookmark; `token` is the one that came with it."""

    token: str
    revision: str = ""
    type: str = ""
    resource: str = ""
    version: str = ""


@dataclass(kw_only=True)
class Watched:
    """All that one watcher was told over its whole life, in order; `token` is where it began, `parent` what it watched.
    `upto` holds the revisions that it had to reach."""

    parent: str
    token: str
    messages: list[Told] = field(default_factory=list)
    lives: int = 0
    upto: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class History:
    """One run."""

    seed: int
    operations: list[Operation] = field(default_factory=list)
    watches: list[Watched] = field(default_factory=list)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)))

    def count(self, result: str) -> int:
        """How many operations ended so."""
        return sum(operation.result == result for operation in self.operations)
