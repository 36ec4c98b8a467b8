"""The second checker: replays the log by its own rules, and compares it with all responses and watches.

Each response must be the state at its revision; no strong response may be older than a response that ended before its
request; requests that were refused or not done must not be in the log; and a watch must keep the guarantees of etcd:
ordered, unique, without a gap, resumable, with true bookmarks.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from storage.ledger.entry import RecordedEvent, Revision
from storage.ledger.log import Log
from storage.ledger.segments import entries_after
from tests.robustness.history import NOTHING, OK, UNKNOWN, History, Operation, Watched
from tests.robustness.requests import READS

Place = tuple[int, int]

_KINDS = {
    "publish": "version-published",
    "set": "alias-set",
    "unset": "alias-deleted",
    "delete": "concept-deleted",
    "undelete": "concept-undeleted",
}


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A concept as clients see it. `version`: the target of the alias, 0 if it does not exist; `etag`: of the alias."""

    state: str = "absent"
    count: int = 0
    version: int = 0
    etag: str = ""

    def after(self, event: RecordedEvent, revision: Revision) -> "Concept":
        """The state after a change."""
        body = event.body
        match event.kind:
            case "concept-created" | "concept-undeleted":
                return replace(self, state="active")
            case "concept-deleted":
                return replace(self, state="deleted")
            case "version-published":
                return replace(self, count=_number(body["name"]))
            case "alias-set":
                return replace(self, version=_number(body["version"]), etag=str(revision))
            case "alias-deleted":
                return replace(self, version=0, etag="")
        raise AssertionError(f"no client has made a change of the kind {event.kind}")


@dataclass(kw_only=True)
class Replayed:
    """A log: all changes, the states of each concept, the changes of each request."""

    changes: dict[int, list[tuple[Revision, RecordedEvent]]] = field(default_factory=lambda: defaultdict(list))
    concepts: dict[str, list[tuple[Place, Concept]]] = field(default_factory=lambda: defaultdict(list))
    requests: dict[str, list[tuple[Revision, RecordedEvent]]] = field(default_factory=lambda: defaultdict(list))

    def at(self, concept: str, place: Place) -> Concept:
        """The state of a concept at a place in the history of its shard."""
        known = self.concepts.get(concept, [])
        found = bisect_right(known, place, key=lambda item: item[0])
        return known[found - 1][1] if found else Concept()

    def before(self, concept: str, revision: Revision) -> Concept:
        """The state of a concept before the change at `revision`."""
        return self.at(concept, (revision.entry, revision.index - 1))


def replayed(log: Log) -> Replayed:
    """Reads a whole log."""
    found = Replayed()
    for shard in range(log.shards):
        for entry in entries_after(log, shard, 0):
            for index, event in enumerate(entry.events):
                revision = entry.revision(index)
                found.changes[shard].append((revision, event))
                found.requests[event.request_id].append((revision, event))
                if "/concepts/" in event.body["name"]:
                    concept = "/".join(event.body["name"].split("/")[:4])
                    state = found.at(concept, revision.place).after(event, revision)
                    found.concepts[concept].append((revision.place, state))
    return found


def judge(history: History, log: Replayed) -> list[str]:
    """The faults; empty if there are none."""
    found: list[str] = []
    for operation in history.operations:
        found += (f"{why}: {operation}" for why in _operation(operation, log))
    found += _time(history.operations)
    for number, watched in enumerate(history.watches):
        found += (f"watch {number} of {watched.parent}: {why}" for why in _watch(watched, log))
    return found


def _operation(operation: Operation, log: Replayed) -> Iterator[str]:
    made = log.requests.get(operation.request_id, []) if operation.request_id else []
    if len({revision.entry for revision, _ in made}) > 1:
        yield "one request is in several entries"
    if operation.kind in READS:
        if operation.revision:
            yield from _read(operation, log.at(operation.concept, Revision.parse(operation.revision).place))
        return
    if operation.result == UNKNOWN:
        return
    if operation.result != OK:
        if made:
            yield "it was not done" if operation.result == NOTHING else "it was refused"
        return
    if not made:
        yield "an answered change is not in the log"
        return
    revision, event = made[-1]
    if str(revision) != operation.revision:
        yield f"it was made at {revision}"
    if event.kind != _KINDS[operation.kind]:
        yield f"it was made a {event.kind}"
    state, before = log.at(operation.concept, revision.place), log.before(operation.concept, revision)
    expected = _answer(operation.kind, state)
    if operation.output != expected:
        yield f"the answer should be {expected}"
    if operation.input.get("etag") and operation.input["etag"] != before.etag:
        yield f"the etag was {before.etag!r}"
    if operation.input.get("create_only") and before.version:
        yield f"the alias was there, at version {before.version}"
    if operation.again is not None and operation.again != {**operation.output, "revision": operation.revision}:
        yield "asked again, it was answered otherwise"


def _read(operation: Operation, state: Concept) -> Iterator[str]:
    if operation.kind == "resolve":
        expected, output = _meaning(state)
    else:
        expected, output = OK, _answer(operation.kind, state)
    if (operation.result, operation.output) != (expected, output):
        yield f"the state at its revision was {state}"


def _answer(kind: str, state: Concept) -> dict[str, Any]:
    match kind:
        case "publish":
            return {"version": state.count}
        case "unset":
            return {}
        case "set" | "alias":
            return {"version": state.version, "etag": state.etag}
    return {"state": state.state, "count": state.count, "version": state.version}


def _meaning(state: Concept) -> tuple[str, Mapping[str, Any]]:
    if state.state == "absent":
        return "WORD_NOT_FOUND", {}
    if state.state == "deleted":
        return "WORD_DELETED", {}
    if state.version:
        return OK, {"version": state.version, "by": "production"}
    return OK, {"version": state.count, "by": "latest"}


def _time(operations: Sequence[Operation]) -> Iterator[str]:
    """No strong response may be older than a response that ended before its request, on any replica."""
    shards: dict[int, list[tuple[int, bool, Place, Operation]]] = defaultdict(list)
    for operation in operations:
        if operation.revision:
            revision = Revision.parse(operation.revision)
            shards[revision.shard].append((operation.end, False, revision.place, operation))
            if not operation.stale:
                shards[revision.shard].append((operation.call, True, revision.place, operation))
    for events in shards.values():
        newest: Place = (0, 0)
        # A response at the time of a call does not precede it.
        for _, called, place, operation in sorted(events, key=lambda event: (event[0], not event[1])):
            if not called:
                newest = max(newest, place)
            elif place < newest:
                yield f"older than an answer given before it was asked for, which showed {newest}: {operation}"


def _watch(watched: Watched, log: Replayed) -> Iterator[str]:
    at = _token(watched.token)
    expected: dict[int, Iterator[tuple[Revision, RecordedEvent]]] = {}
    for shard, start in at.items():
        changes = [change for change in log.changes[shard] if change[0].place > start.place or start.entry == 0]
        expected[shard] = iter([change for change in changes if _is_told(watched.parent, change[1])])
    following = {shard: next(changes, None) for shard, changes in expected.items()}
    for message in watched.messages:
        token = _token(message.token)
        if message.revision:
            revision = Revision.parse(message.revision)
            wanted = following[revision.shard]
            if wanted is None or wanted[0] != revision:
                yield f"{message} came instead of {wanted and wanted[0]}"
                return
            event = wanted[1]
            kind = "TYPE_" + event.kind.upper().replace("-", "_")
            version = event.body.get("version", "")
            if (message.type, message.resource, message.version) != (kind, event.body["name"], version):
                yield f"{message} is not {event}"
            if token[revision.shard] != revision:
                yield f"the token of {message} is another revision's"
            following[revision.shard] = next(expected[revision.shard], None)
        for shard, revision in token.items():
            late = following[shard]
            if late is not None and late[0].place <= revision.place:
                yield f"the token {message.token} is past {late[0]}, which was not reported"
                return
            if revision.place < at[shard].place:
                yield f"the token {message.token} is before the one that came before it"
        at = token
    for goal in map(Revision.parse, watched.upto):
        late = following[goal.shard]
        if late is not None and late[0].place <= goal.place:
            yield f"{late[0]} was never reported"


def _is_told(parent: str, event: RecordedEvent) -> bool:
    return parent in ("tenants/-", f"tenants/{event.tenant}")


def _token(token: str) -> dict[int, Revision]:
    return {revision.shard: revision for revision in map(Revision.parse, token.split("."))}


def _number(version: str) -> int:
    return int(version.rsplit("/", 1)[1])
