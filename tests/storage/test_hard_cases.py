"""The fault cases for which the commit log was designed.

Two more cases need a registry: a publisher that is suspended during a collection (tests/registry/test_gc.py), and a
store that is restored under running replicas (tests/registry/test_replaced.py).
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
from tests.conftest import Eventually
from tests.storage.counters import Add, Refused, add, everything, fill, open_ledger, value_of

SLEPT = 2000


class FaultyStore:
    """A store that writes entries of the log by `put`, and whose clock is `ahead` of the time."""

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


def _opened(store: FaultyStore, folder: Path) -> Ledger[Add]:
    return open_ledger(cast(ObjectStore, store), folder)


async def _value(ledger: Ledger[Add], name: str = "a") -> int:
    value, _ = await ledger.read(1, lambda db: value_of(db, name))
    return value


class _Pause:
    """Suspends a put until `resumed` is set."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.suspended, self.resumed = threading.Event(), threading.Event()

    def put(self, name: str, data: bytes) -> None:
        self.suspended.set()
        assert self.resumed.wait(60)
        self._store.put_if_absent(name, data)


async def test_suspended_writer_decides_again_after_commits_of_another_writer(
    store: ObjectStore, tmp_path: Path
) -> None:
    """The writer loses its entry number, and decides again on the new state. The request of a caller that has timed out
    is not committed."""
    faulty, pause = FaultyStore(store), _Pause(store)
    suspended, other = _opened(faulty, tmp_path / "suspended"), open_ledger(store, tmp_path / "other")
    await add(other, Add(name="a", amount=1), "first")
    assert await _value(suspended) == 1
    faulty.put = pause.put
    waiting = asyncio.create_task(add(suspended, Add(name="a", amount=5, limit=10), "waits"))
    refused = asyncio.create_task(add(suspended, Add(name="a", amount=8, limit=10), "refused"))
    with pytest.raises(OutcomeUnknown):
        await add(suspended, Add(name="a", amount=5), "left", timeout_s=0.5)
    assert pause.suspended.is_set()
    for number in range(3):
        await add(other, Add(name="a", amount=1), f"other-{number}")
    pause.resumed.set()
    assert (await waiting).value == {"value": 9}
    with pytest.raises(Refused):
        await refused
    assert await _value(other) == await _value(suspended) == 9
    # The repeated request has one effect.
    assert (await add(other, Add(name="a", amount=5), "left")).value == {"value": 14}
    assert (await add(suspended, Add(name="a", amount=5), "left")).value == {"value": 14}
    assert await _value(other) == 14
    await suspended.close()
    await other.close()


class _Late:
    """Reports the first put as failed, and writes it in `land`. Later puts succeed (`again`) or fail."""

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
        """Writes the first put. Whether it won its entry number."""
        try:
            self._store.put_if_absent(*self._held[0])
        except ObjectExists:
            return False
        return True


async def test_late_put_that_lands_before_its_retry_has_one_effect(
    store: ObjectStore, tmp_path: Path, eventually: Eventually
) -> None:
    """The retry finds its own entry under the number."""
    faulty, late = FaultyStore(store), _Late(store, again=False)
    ledger = _opened(faulty, tmp_path / "view")
    assert await _value(ledger) == 0
    faulty.put = late.put
    waiting = asyncio.create_task(add(ledger, Add(name="a", amount=1), "one"))
    await asyncio.to_thread(eventually, lambda: late.tries >= 3)
    assert late.land()
    faulty.put = store.put_if_absent
    assert (await waiting).revision.place == (1, 0)
    assert await _value(ledger) == 1
    await ledger.close()


async def test_late_put_that_lands_after_its_retry_has_no_effect(store: ObjectStore, tmp_path: Path) -> None:
    """The late put finds the number taken."""
    faulty, late = FaultyStore(store), _Late(store, again=True)
    ledger = _opened(faulty, tmp_path / "view")
    faulty.put = late.put
    assert (await add(ledger, Add(name="a", amount=1), "one")).value == {"value": 1}
    faulty.put = store.put_if_absent
    assert (await add(ledger, Add(name="a", amount=1), "two")).value == {"value": 2}
    assert not late.land()
    assert await _value(ledger) == 2
    await ledger.close()


async def test_late_put_of_a_dead_writer_has_one_effect_with_the_repeated_request(
    store: ObjectStore, tmp_path: Path
) -> None:
    """A request that is repeated before the late put lands gets a new entry, and the late put fails. A request that is
    repeated after it gets the response of its entry."""
    for number, lands_first in enumerate((True, False)):
        faulty, late = FaultyStore(store), _Late(store, again=False)
        ledger = _opened(faulty, tmp_path / f"dead-{number}")
        before = await _value(ledger)
        faulty.put = late.put
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


async def test_reader_suspended_for_2000_entries_sees_all_of_them(tmp_path: Path) -> None:
    """Its next strong read shows all entries, and its watch reports each once. On disk only, because it takes long to
    fill MinIO; test_derived.py has a replica that misses 1,024 entries there."""
    store = DiskStore(tmp_path / "store")
    suspended = open_ledger(store, tmp_path / "suspended")
    fill(store, 1, 1)
    after = (await suspended.read(1, lambda db: None))[1]
    fill(store, 1, SLEPT, first=2)
    other = open_ledger(store, tmp_path / "other")
    expected = await other.read(1, everything)
    assert await suspended.read(1, everything) == expected
    reported = []
    async for change in suspended.watch(1, after):
        reported.append(change.revision.entry)
        if len(reported) == SLEPT:
            break
    assert reported == list(range(2, SLEPT + 2))
    assert (await add(suspended, Add(name="a", amount=1), "last")).revision.entry == SLEPT + 2
    await suspended.close()
    await other.close()


@pytest.mark.parametrize("minutes", [-3, 3])
async def test_writer_with_a_wrong_clock_writes_nothing_until_it_is_set(
    store: ObjectStore, tmp_path: Path, minutes: int
) -> None:
    """Reads work with a wrong clock. Writes work after the clock is set."""
    faulty = FaultyStore(store)
    ledger = _opened(faulty, tmp_path / "view")
    await add(ledger, Add(name="a", amount=1), "one")
    faulty.ahead = timedelta(minutes=-minutes)
    await ledger.close()
    ledger = _opened(faulty, tmp_path / "view")
    with pytest.raises(ClockSkew, match="set it"):
        await add(ledger, Add(name="a", amount=1), "two")
    assert await _value(ledger) == 1
    assert [info.name for info in store.list("log/1/")] == [entry_name(1, 1)]
    faulty.ahead = timedelta(0)
    assert (await add(ledger, Add(name="a", amount=1), "two")).value == {"value": 2}
    await ledger.close()


async def test_times_increase_after_an_entry_with_a_time_in_the_future(store: ObjectStore, tmp_path: Path) -> None:
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
