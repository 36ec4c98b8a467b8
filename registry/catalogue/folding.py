"""Selects the events of a shard's history that a new, folded store keeps.

A kept event keeps its time, actor and request id. Dropped, if older than a given time: the events of purged concepts
(only their names are kept); updates, deletions and yanks that later ones supersede; all moves of an alias except the
newest few. Condemnations of blobs are always dropped.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pseudoword.names import TenantName

from registry.catalogue.content import CONDEMNED, TAKEN
from registry.catalogue.versioned_rows import place
from storage.ledger.entry import MAX_EVENTS, RecordedEvent, canonical
from storage.ledger.state_machine import CommittedEvent
from storage.ledger.view import all_changes

_NAMES = 200  # names per event; they fit one entry with room to spare
_LIFE = ("concept-deleted", "concept-undeleted")
_YANKS = ("version-yanked", "version-unyanked")
_MOVES = ("alias-set", "alias-deleted")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The content of one new entry; `time_us` is the old entry's."""

    time_us: int
    events: Sequence[RecordedEvent]


def fold(db: sqlite3.Connection, store_id: str, shard: int, *, before_us: int, moves: int) -> Iterator[Kept]:
    """The new entries, in order, to be numbered from 1.

    All events since `before_us` are kept, and at least the newest `moves` moves (one or more) of each alias.
    """
    chosen = _Choice(db, store_id, shard, before_us, max(1, moves))
    places: dict[int, int] = {}
    number, last_us = 0, 0
    entry: list[CommittedEvent] = []

    def ended() -> Kept:
        events = []
        for index, event in enumerate(entry):
            places[place(event.revision)] = number * MAX_EVENTS + index
            events.append(_moved(event.recorded, places))
        return Kept(time_us=entry[0].time_us, events=events)

    for event in all_changes(db, store_id, shard):
        last_us = event.time_us
        if not chosen.keeps(event):
            continue
        if entry and entry[0].revision.entry != event.revision.entry:
            yield ended()
            entry = []
        if not entry:
            number += 1
        entry.append(event)
    if entry:
        yield ended()
    for later, taken in enumerate(chosen.taken(), start=1):
        yield Kept(time_us=last_us + later, events=[taken])


def _moved(event: RecordedEvent, places: Mapping[int, int]) -> RecordedEvent:
    """`event` with the place in `restored` replaced by the new one; 0, before all events, if that one is dropped."""
    if "restored" not in event.body:
        return event
    return replace(event, body=event.body | {"restored": places.get(event.body["restored"], 0)})


class _Choice:
    """Decides which events are kept."""

    def __init__(self, db: sqlite3.Connection, store_id: str, shard: int, before_us: int, moves: int) -> None:
        self._before_us = before_us
        # `_last`: the last event of each group and name of which only the last one counts. `moved`: all moves by alias.
        self._last: dict[tuple[str, str], int] = {}
        moved: dict[str, list[int]] = defaultdict(list)
        purged_us: dict[str, int] = {}
        for event in all_changes(db, store_id, shard):
            name, kind, here = event.body["name"], event.kind, place(event.revision)
            self._last[_group(kind), name] = here
            self._last["concept", _concept(name)] = here
            if kind in _MOVES:
                moved[name].append(here)
            if kind == "concept-purged":
                purged_us[name] = event.time_us
        self._moves = {here for places in moved.values() for here in places[-moves:]}
        counts = {
            f"tenants/{tenant}/concepts/{concept}": count
            for tenant, concept, count in db.execute("SELECT tenant, concept, count FROM purged")
        }
        # The history of a concept that an earlier fold has dropped consists of that fold's own event only.
        self._purged = {name: count for name, count in counts.items() if purged_us.get(name, 0) < before_us}

    def keeps(self, event: CommittedEvent) -> bool:
        name, kind, here = event.body["name"], event.kind, place(event.revision)
        if kind in (CONDEMNED, TAKEN) or _concept(name) in self._purged:
            return False
        if event.time_us >= self._before_us or here == self._last["concept", _concept(name)]:
            # A concept's last event is kept because it determines the concept's update_time.
            return True
        last = here == self._last[_group(kind), name]
        match kind:
            case "concept-undeleted" | "version-unyanked":
                return False
            case "tenant-updated" | "concept-updated" | "concept-deleted" | "version-yanked":
                return last
            case "alias-set" | "alias-deleted":
                return here in self._moves
        return True

    def taken(self) -> Iterator[RecordedEvent]:
        """Events that keep the names and version counts of purged concepts."""
        names = sorted(self._purged)
        tenants = sorted({_tenant(name) for name in names})
        for tenant in tenants:
            own = [name for name in names if _tenant(name) == tenant]
            for start in range(0, len(own), _NAMES):
                counts = {name: self._purged[name] for name in own[start : start + _NAMES]}
                yield RecordedEvent(
                    kind=TAKEN,
                    tenant=tenant,
                    request_id="",
                    request_digest="",
                    actor="fold",
                    on_behalf_of="",
                    body=canonical({"name": str(TenantName(tenant)), "peer": "", "concepts": counts}),
                )


def _group(kind: str) -> str:
    """The group of an event kind. Of the events with one group and name, only the last one counts."""
    for group in (_LIFE, _YANKS, _MOVES):
        if kind in group:
            return group[0]
    return kind


def _concept(name: str) -> str:
    """The name of the concept that a resource name belongs to; the name itself if it is a tenant's."""
    return "/".join(name.split("/")[:4])


def _tenant(name: str) -> str:
    return name.split("/")[1]
