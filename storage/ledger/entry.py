"""An entry of the commit log: its events, its object name and its encoding."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage.errors import BadRevision, Damaged, EntryTooLarge, StoreChanged

FORMAT = 1
MAX_ENTRY_BYTES = 64 * 1024
MAX_EVENTS = 256
# Reserved in an entry for the fields that are not events; more than they can take.
_HEAD_BYTES = 1024

_REVISION = re.compile(r"([0-9a-f]{20})-(0|[1-9][0-9]{0,4})-(0|[1-9][0-9]{0,18})-(0|[1-9][0-9]{0,2})")


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A place in one shard's history: event `index` of entry `entry`. Entry 0 is before the first entry.

    Ordered only within one store and shard. `str(revision)` is `<store id>-<shard>-<entry>-<index>`.
    """

    store_id: str
    shard: int
    entry: int
    index: int

    @property
    def place(self) -> tuple[int, int]:
        """(entry, index): the order of the revisions of one shard."""
        return self.entry, self.index

    def __str__(self) -> str:
        return f"{self.store_id}-{self.shard}-{self.entry}-{self.index}"

    @classmethod
    def parse(cls, text: str) -> "Revision":
        """The inverse of str(). Raises BadRevision for any other text."""
        match = _REVISION.fullmatch(text)
        if match is None or int(match[4]) >= MAX_EVENTS:
            raise BadRevision(f"{text[:80]!r} is not a revision", revision=text[:80])
        return cls(store_id=match[1], shard=int(match[2]), entry=int(match[3]), index=int(match[4]))

    def check(self, store_id: str, shard: int) -> None:
        """Raises StoreChanged for a revision of another store, BadRevision for a revision of another shard."""
        if self.store_id != store_id:
            raise StoreChanged(f"revision {self} belongs to another store; list again", revision=str(self))
        if self.shard != shard:
            raise BadRevision(f"revision {self} does not belong to shard {shard}", revision=str(self))


@dataclass(frozen=True, kw_only=True)
class RecordedEvent:
    """One event as the log keeps it. `body` is a JSON object with everything that is needed to apply the event again.

    `request_id` is scoped by `tenant`; `request_digest` is the digest of the request's body. `on_behalf_of` is empty
    unless `actor` acted for another principal.
    """

    kind: str
    tenant: str
    request_id: str
    request_digest: str
    actor: str
    on_behalf_of: str
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """`time_us`: microseconds since 1970 UTC, greater than in all earlier entries of the shard. `write_id`: random, so
    that a writer can recognise its own entry."""

    store_id: str
    shard: int
    number: int
    time_us: int
    write_id: str
    events: tuple[RecordedEvent, ...]

    def revision(self, index: int) -> Revision:
        return Revision(store_id=self.store_id, shard=self.shard, entry=self.number, index=index)


def entry_name(shard: int, number: int) -> str:
    return f"log/{shard}/{number:020d}"


def event_bytes(events: Sequence[RecordedEvent]) -> int:
    """Encoded size of `events` in bytes. Raises EntryTooLarge when together they do not fit one entry."""
    size = sum(len(_compact(_event_json(event))) + 1 for event in events)
    if size > MAX_ENTRY_BYTES - _HEAD_BYTES or len(events) > MAX_EVENTS:
        raise EntryTooLarge(
            f"one command's {len(events)} events take {size} bytes; an entry holds {MAX_EVENTS} events and "
            f"{MAX_ENTRY_BYTES - _HEAD_BYTES} bytes: shorten the request, or split it"
        )
    return size


def fits(events: int, size: int) -> bool:
    """Whether `events` events of `size` bytes together (the sum of event_bytes) fit one entry."""
    return events <= MAX_EVENTS and size <= MAX_ENTRY_BYTES - _HEAD_BYTES


def canonical(value: dict[str, Any]) -> dict[str, Any]:
    """`value` as it is read back from an entry. Raises TypeError or ValueError if it is not JSON (NaN is not)."""
    back: dict[str, Any] = json.loads(_compact(value))
    return back


def encode(entry: Entry) -> bytes:
    """The content of the entry's object: JSON, with a digest over the other fields."""
    body = vars(entry) | {"format": FORMAT, "mutations": [_event_json(event) for event in entry.events]}
    del body["events"]
    return _compact(body | {"digest": hashlib.sha256(_compact(body)).hexdigest()})


def decode(data: bytes, *, store_id: str, shard: int, number: int) -> Entry:
    """The entry in `data`, the object of entry `number`. Raises Damaged unless it is complete and is that entry."""
    name = entry_name(shard, number)
    try:
        body = json.loads(data)
        digest = body.pop("digest")
        # `encode` sorts the names, so the digest comes first. It covers the object without this first field.
        head = _compact({"digest": digest})[:-1] + b","
        if not data.startswith(head) or digest != hashlib.sha256(b"{" + data[len(head) :]).hexdigest():
            raise Damaged(name, "its digest does not match")
        if body.pop("format") != FORMAT:
            raise Damaged(name, "this version does not support its format")
        events = tuple(RecordedEvent(body=event.pop("effect"), **event) for event in body.pop("mutations"))
        entry = Entry(**body, events=events)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged(name, f"it is not an entry ({type(error).__name__})") from error
    if (entry.store_id, entry.shard, entry.number) != (store_id, shard, number):
        raise Damaged(name, f"it is entry {entry.number} of shard {entry.shard} of store {entry.store_id}")
    return entry


def _event_json(event: RecordedEvent) -> dict[str, Any]:
    """An event with the field names of the log's format 1, in which `body` is called `effect`."""
    fields = dict(vars(event))
    fields["effect"] = fields.pop("body")
    return fields


def _compact(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
