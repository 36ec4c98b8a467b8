"""A small state machine for tests: named counters; a ledger of it, and a process that writes."""

import asyncio
import json
import sqlite3
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.ledger.entry import Entry, RecordedEvent, encode, entry_name
from storage.ledger.ledger import Ledger
from storage.ledger.log import Log
from storage.ledger.pending import Result
from storage.ledger.state_machine import Answer, CommittedEvent, Event
from storage.objects.base import ObjectStore
from storage.objects.disk import DiskStore
from storage.objects.open import open_store
from storage.objects.s3 import S3Access


class Refused(Exception):
    """The refusal of the state machine."""


@dataclass(frozen=True, kw_only=True)
class Add:
    """Adds `amount`; refused if the sum would exceed `limit`. An amount of 0 makes no event."""

    name: str
    amount: int
    limit: int = 1_000_000
    note: str = ""
    times: int = 1


class Counters:
    """A StateMachine."""

    name = "counters"
    schema_version = 1

    def create(self, db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER, times INTEGER, changed_us INTEGER)")

    def decide(self, db: sqlite3.Connection, command: Add, now_us: int) -> Sequence[Event] | Answer:
        value = value_of(db, command.name)
        if command.amount == 0:
            return Answer(value={"value": value})
        if value + command.amount > command.limit:
            raise Refused(f"{command.name} is {value}")
        body = {"name": command.name, "amount": command.amount, "note": command.note}
        return [Event(kind="add", body=body)] * command.times

    def apply(self, db: sqlite3.Connection, change: CommittedEvent) -> dict[str, Any]:
        body = change.body
        db.execute(
            "INSERT INTO counters VALUES (?, ?, 1, ?) ON CONFLICT (name) DO UPDATE"
            " SET value = value + excluded.value, times = times + 1, changed_us = excluded.changed_us",
            (body["name"], body["amount"], change.time_us),
        )
        return {"value": value_of(db, body["name"])}

    def blobs(self, db: sqlite3.Connection) -> Sequence[str]:
        return ()

    def doomed(self, db: sqlite3.Connection, blob: str) -> bool:
        return False


class CountingStore(DiskStore):
    """A disk store that counts reads by the first part of the name."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read: Counter[str] = Counter()

    def get(self, name: str) -> bytes:
        self.read[name.split("/")[0]] += 1
        return super().get(name)


def value_of(db: sqlite3.Connection, name: str) -> int:
    row = db.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
    return 0 if row is None else int(row["value"])


def everything(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """All rows of a view."""
    tables = ("counters", "ledger_history", "ledger_view")
    return [tuple(row) for table in tables for row in db.execute(f"SELECT * FROM {table} ORDER BY 1, 2")]


def open_ledger(store: ObjectStore, folder: Path, shards: int = 2) -> Ledger[Add]:
    return Ledger.open(store, Counters(), shards=shards, view_folder=folder)


async def add(
    ledger: Ledger[Add], command: Add, request_id: str, *, timeout_s: float = 60, validate_only: bool = False
) -> Result:
    return await ledger.commit(
        1,
        command,
        request_id=request_id,
        tenant="shop",
        digest=repr(command),
        actor="tester",
        on_behalf_of=None,
        timeout_s=timeout_s,
        validate_only=validate_only,
    )


def fill(store: ObjectStore, shard: int, count: int, first: int = 1) -> None:
    """Puts `count` entries from number `first` on."""
    log = Log.open(store, book="counters", shards=2)

    def put(number: int) -> None:
        body = {"name": f"n{number % 7}", "amount": number, "note": ""}
        event = RecordedEvent(
            kind="add",
            tenant="shop",
            request_id=f"fill-{number}",
            request_digest="-",
            actor="filler",
            on_behalf_of="",
            body=body,
        )
        entry = Entry(
            store_id=log.store_id,
            shard=shard,
            number=number,
            time_us=1_700_000_000_000_000 + number,
            write_id=f"{number:024d}",
            events=(event,),
        )
        store.put_if_absent(entry_name(shard, number), encode(entry))

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(put, range(first, first + count)))


async def write(address: str, access: S3Access | None, folder: Path, prefix: str, count: int) -> None:
    """Adds 1 to "shared" under `count` request ids, four at a time, and prints a line for each response."""
    store = open_store(address, access)
    ledger = open_ledger(store, folder)
    gate = asyncio.Semaphore(4)

    async def one(number: int) -> None:
        async with gate:
            result = await add(ledger, Add(name="shared", amount=1), f"{prefix}-{number}")
            line = {"id": f"{prefix}-{number}", "value": result.value["value"], "revision": str(result.revision)}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()

    await asyncio.gather(*(one(number) for number in range(count)))
    await ledger.close()
    store.close()


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    access = S3Access(**settings["access"]) if settings["access"] else None
    asyncio.run(write(settings["address"], access, Path(settings["folder"]), settings["prefix"], settings["count"]))
