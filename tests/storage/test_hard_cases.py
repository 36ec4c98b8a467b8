"""The cases that the commit log was designed for, by name.

Two more need a registry: a publisher asleep across a collection (tests/registry/test_gc.py), and a store that is
restored under running replicas (tests/registry/test_replaced.py).
"""

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from storage.errors import ClockSkew, ObjectExists, OutcomeUnknown, StoreUnavailable
from storage.ledger.entry import Entry, RecordedEvent, encode, entry_name
from storage.ledger.ledger import Ledger
from storage.objects.base import ObjectStore
from storage.objects.disk import DiskStore
from tests.storage.counters import Add, Refused, add, everything, fill, open_ledger, value_of

SLEPT = 2000


class Strange:
    """A store through which entries of the log are put by `put`, and whose clock is `ahead` of the time."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.put: Callable[[str, bytes], None] = store.put_if_absent
        self.ahead = timedelta(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put_if_absent(self, name: str, data: bytes) -> None:
        (self.put if name.startswith("log/") else self._store.put_if_absent)(name, data)

    def now(self) -> datetime:
        return self._store.now() + self.ahead


def _opened(store: Strange, folder: Path) -> Ledger[Add]:
    return open_ledger(cast(ObjectStore, store), folder)


async def _value(ledger: Ledger[Add], name: str = "a") -> int:
    value, _ = await ledger.read(1, lambda db: value_of(db, name))
    return value


class _Bed:
    """Where a put sleeps, before it is made, until it is woken."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.asleep, self.awake = threading.Event(), threading.Event()

    def put(self, name: str, data: bytes) -> None:
        self.asleep.set()
        assert self.awake.wait(60)
        self._store.put_if_absent(name, data)


async def test_a_writer_asleep_across_other_commits(store: ObjectStore, tmp_path: Path) -> None:
    """It loses its number, and decides on what the others have made of the state meanwhile; a caller that has left is
    not served behind its back."""
    strange, bed = Strange(store), _Bed(store)
    sleeper, other = _opened(strange, tmp_path / "sleeper"), open_ledger(store, tmp_path / "other")
    await add(other, Add(name="a", amount=1), "first")
    assert await _value(sleeper) == 1
    strange.put = bed.put
    waiting = asyncio.create_task(add(sleeper, Add(name="a", amount=5, limit=10), "waits"))
    refused = asyncio.create_task(add(sleeper, Add(name="a", amount=8, limit=10), "refused"))
    with pytest.raises(OutcomeUnknown):
        await add(sleeper, Add(name="a", amount=5), "left", timeout_s=0.5)
    assert bed.asleep.is_set()
    for number in range(3):
        await add(other, Add(name="a", amount=1), f"other-{number}")
    bed.awake.set()
    assert (await waiting).value == {"value": 9}
    with pytest.raises(Refused):
        await refused
    assert await _value(other) == await _value(sleeper) == 9
    # Asked again, it is made once.
    assert (await add(other, Add(name="a", amount=5), "left")).value == {"value": 14}
    assert (await add(sleeper, Add(name="a", amount=5), "left")).value == {"value": 14}
    assert await _value(other) == 14
    await sleeper.close()
    await other.close()


class _Late:
    """The first put is told to have failed, and is made when it is let go; others are made at once, or not at all."""

    def __init__(self, store: ObjectStore, *, again: bool) -> None:
        self._store = store
        self._again = again
        self._held: list[tuple[str, bytes]] = []
        self.tries = 0

    def put(self, name: str, data: bytes) -> None:
        self.tries += 1
        if not self._held:
            self._held.append((name, data))
        elif self._again:
            return self._store.put_if_absent(name, data)
        raise StoreUnavailable("timed out")

    def land(self) -> bool:
        """Whether the late put won its number."""
        try:
            self._store.put_if_absent(*self._held[0])
        except ObjectExists:
            return False
        return True


async def test_a_late_put_that_lands_before_it_is_tried_again(
    store: ObjectStore, tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """The next try finds the number taken, by this very entry."""
    strange, late = Strange(store), _Late(store, again=False)
    ledger = _opened(strange, tmp_path / "view")
    assert await _value(ledger) == 0
    strange.put = late.put
    waiting = asyncio.create_task(add(ledger, Add(name="a", amount=1), "one"))
    await asyncio.to_thread(eventually, lambda: late.tries >= 3)
    assert late.land()
    strange.put = store.put_if_absent
    assert (await waiting).revision.place == (1, 0)
    assert await _value(ledger) == 1
    await ledger.close()


async def test_a_late_put_that_lands_after_its_own_second_try(store: ObjectStore, tmp_path: Path) -> None:
    """It finds the number taken, and nobody hears of it."""
    strange, late = Strange(store), _Late(store, again=True)
    ledger = _opened(strange, tmp_path / "view")
    strange.put = late.put
    assert (await add(ledger, Add(name="a", amount=1), "one")).value == {"value": 1}
    strange.put = store.put_if_absent
    assert (await add(ledger, Add(name="a", amount=1), "two")).value == {"value": 2}
    assert not late.land()
    assert await _value(ledger) == 2
    await ledger.close()


async def test_a_late_put_that_lands_after_its_writer_has_died(store: ObjectStore, tmp_path: Path) -> None:
    """Whoever asks again before that is served by another entry, and the late one loses; whoever asks after it gets
    its answer."""
    for number, lands_first in enumerate((True, False)):
        strange, late = Strange(store), _Late(store, again=False)
        ledger = _opened(strange, tmp_path / f"dying-{number}")
        before = await _value(ledger)
        strange.put = late.put
        with pytest.raises(OutcomeUnknown):
            await add(ledger, Add(name="a", amount=1), f"request-{number}", timeout_s=0.3)
        await ledger.close()
        if lands_first:
            assert late.land()
        fresh = open_ledger(store, tmp_path / f"fresh-{number}")
        again = await add(fresh, Add(name="a", amount=1), f"request-{number}")
        assert again.value == {"value": before + 1}
        assert lands_first or not late.land()
        assert await _value(fresh) == before + 1
        await fresh.close()


async def test_a_reader_asleep_across_2000_entries(tmp_path: Path) -> None:
    """Its next strong read shows all of them, and its watch tells each once. On a disk only: to fill MinIO takes long,
    and test_derived.py has a replica that slept across 1,024 entries there."""
    store = DiskStore(tmp_path / "store")
    sleeper = open_ledger(store, tmp_path / "sleeper")
    fill(store, 1, 1)
    after = (await sleeper.read(1, lambda db: None))[1]
    fill(store, 1, SLEPT, first=2)
    other = open_ledger(store, tmp_path / "other")
    expected = await other.read(1, everything)
    assert await sleeper.read(1, everything) == expected
    told = []
    async for change in sleeper.watch(1, after):
        told.append(change.revision.entry)
        if len(told) == SLEPT:
            break
    assert told == list(range(2, SLEPT + 2))
    assert (await add(sleeper, Add(name="a", amount=1), "last")).revision.entry == SLEPT + 2
    await sleeper.close()
    await other.close()


@pytest.mark.parametrize("minutes", [-3, 3])
async def test_a_clock_that_is_wrong_by_minutes(store: ObjectStore, tmp_path: Path, minutes: int) -> None:
    """It writes nothing, reads on, and writes again once it is right."""
    strange = Strange(store)
    ledger = _opened(strange, tmp_path / "view")
    await add(ledger, Add(name="a", amount=1), "one")
    strange.ahead = timedelta(minutes=-minutes)
    await ledger.close()
    ledger = _opened(strange, tmp_path / "view")
    with pytest.raises(ClockSkew, match="set it"):
        await add(ledger, Add(name="a", amount=1), "two")
    assert await _value(ledger) == 1
    assert [info.name for info in store.list("log/1/")] == [entry_name(1, 1)]
    strange.ahead = timedelta(0)
    assert (await add(ledger, Add(name="a", amount=1), "two")).value == {"value": 2}
    await ledger.close()


async def test_times_go_on_after_an_entry_of_a_clock_that_was_minutes_ahead(store: ObjectStore, tmp_path: Path) -> None:
    ledger = open_ledger(store, tmp_path / "view")
    ahead_us = (time.time_ns() // 1000) + 300 * 1_000_000
    event = RecordedEvent(
        kind="add",
        tenant="shop",
        request_id="ahead",
        request_digest="-",
        actor="filler",
        on_behalf_of="",
        body={"name": "a", "amount": 1, "note": ""},
    )
    entry = Entry(store_id=ledger.store_id, shard=1, number=1, time_us=ahead_us, write_id="w" * 24, events=(event,))
    store.put_if_absent(entry_name(1, 1), encode(entry))
    for number in range(3):
        await add(ledger, Add(name="a", amount=1), f"r{number}")
    changes, _ = await ledger.changes(1, ledger.beginning(1))
    assert [change.time_us for change in changes] == [ahead_us, ahead_us + 1, ahead_us + 2, ahead_us + 3]
    await ledger.close()
