"""The history of a run: requests of clients with their responses, and messages to watchers."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OK = "OK"
# The operation may have been done, may be done later, or never.
UNKNOWN = "UNKNOWN"
# The operation was certainly not done.
NOTHING = "NOTHING"


@dataclass(kw_only=True)
class Operation:
    """One operation of one client, with all its attempts.

    `call` and `end` are nanoseconds of one monotonic clock, before the first attempt and after the last response.
    `result` is OK, the reason of a refusal, UNKNOWN or NOTHING. `stale`: an old response was allowed. `again`: the
    response to the same request sent once more after its response.
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
class WatchMessage:
    """One message of a watch: an event, or (`revision` empty) a bookmark; `token` is its resume token."""

    token: str
    revision: str = ""
    type: str = ""
    resource: str = ""
    version: str = ""


@dataclass(kw_only=True)
class Watched:
    """All messages of one watcher, in order. `token`: where it started; `parent`: what it watched; `lives`: the number
    of its watches; `upto`: the revisions that it had to reach."""

    parent: str
    token: str
    messages: list[WatchMessage] = field(default_factory=list)
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
        """The number of operations with this result."""
        return sum(operation.result == result for operation in self.operations)
