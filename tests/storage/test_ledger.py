"""The ledger in one process: responses are correct, also if the store fails."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from storage.errors import (
    BadRevision,
    Closed,
    Contention,
    Damaged,
    EntryTooLarge,
    NotCommitted,
    OutcomeUnknown,
    RequestIdReused,
    RevisionAhead,
    StoreChanged,
    StoreMismatch,
    StoreUnavailable,
    ViewInUse,
)
from storage.ledger.entry import Revision, decode, entry_name
from storage.ledger.ledger import Ledger, shard_of
from storage.ledger.view import View
from storage.objects.base import ObjectStore
from storage.objects.disk import DiskStore
from tests.storage.counters import Add, Counters, CountingStore, Refused, add, everything, open_ledger, value_of


@pytest.fixture
async def ledger(store: ObjectStore, tmp_path: Path) -> AsyncIterator[Ledger[Add]]:
    opened = open_ledger(store, tmp_path / "view")
    yield opened
    await opened.close()


async def _value(ledger: Ledger[Add], name: str = "a") -> int:
    value, _ = await ledger.read(1, lambda db: value_of(db, name))
    return value


async def test_commands_are_committed_refused_and_repeated_by_request_id(ledger: Ledger[Add]) -> None:
    first = await add(ledger, Add(name="a", amount=3), "one")
    second = await add(ledger, Add(name="a", amount=4, times=2), "two")
    assert (first.value, second.value) == ({"value": 3}, {"value": 11})
    assert (first.revision.place, second.revision.place) == ((1, 0), (2, 1))
    with pytest.raises(Refused):
        await add(ledger, Add(name="a", amount=1, limit=5), "three")
    assert await add(ledger, Add(name="a", amount=3), "one") == first
    assert await add(ledger, Add(name="a", amount=4, times=2), "two") == second
    with pytest.raises(RequestIdReused):
        await add(ledger, Add(name="a", amount=5), "one")
    unchanged = await add(ledger, Add(name="a", amount=0), "four")
    assert (unchanged.value, unchanged.revision) == ({"value": 11}, second.revision)
    value, revision = await ledger.read(1, lambda db: value_of(db, "a"))
    assert (value, revision) == (11, second.revision)


async def test_validate_only_responds_without_a_commit(ledger: Ledger[Add]) -> None:
    tried = await add(ledger, Add(name="a", amount=3), "one", validate_only=True)
    assert tried.value == {"value": 3}
    with pytest.raises(Refused):
        await add(ledger, Add(name="a", amount=3, limit=2), "two", validate_only=True)
    assert await _value(ledger) == 0
    # Also together with other commands in one entry.
    many = [add(ledger, Add(name="a", amount=1), f"{n}", validate_only=n % 2 == 0) for n in range(20)]
    await asyncio.gather(*many)
    assert await _value(ledger) == 10


async def test_concurrent_commands_share_entries_in_order(ledger: Ledger[Add]) -> None:
    await add(ledger, Add(name="a", amount=1), "first")
    commands = [add(ledger, Add(name="a", amount=1, limit=200), f"r{number}") for number in range(700)]
    results = await asyncio.gather(*commands, return_exceptions=True)
    won = [result for result in results if not isinstance(result, BaseException)]
    assert sorted(result.value["value"] for result in won) == list(range(2, 201))
    assert all(isinstance(result, Refused) for result in results if isinstance(result, BaseException))
    assert len({result.revision for result in won}) == len(won)
    assert len({result.revision.entry for result in won}) <= 10
    assert await _value(ledger) == 200


async def test_entries_stay_below_the_maximum_size(ledger: Ledger[Add], store: ObjectStore) -> None:
    with pytest.raises(EntryTooLarge):
        await add(ledger, Add(name="a", amount=1, note="x" * 70_000), "huge")
    note = "x" * 10_000
    results = await asyncio.gather(*(add(ledger, Add(name="a", amount=1, note=note), f"r{n}") for n in range(40)))
    assert sorted(result.value["value"] for result in results) == list(range(1, 41))
    sizes = [info.size for info in store.list("log/1/")]
    assert sum(sizes) > 400_000
    assert max(sizes) <= 64 * 1024


async def test_command_that_lost_a_race_is_decided_again(
    ledger: Ledger[Add], store: ObjectStore, tmp_path: Path
) -> None:
    """Two replicas with separate views see each other's commits, and neither exceeds the limit."""
    other = open_ledger(store, tmp_path / "other")
    try:
        await add(ledger, Add(name="a", amount=1), "one")
        assert await _value(other) == 1
        step = Add(name="a", amount=1, limit=30)
        both = [add(ledger if number % 2 else other, step, f"r{number}") for number in range(60)]
        results = await asyncio.gather(*both, return_exceptions=True)
        assert sum(not isinstance(result, Refused) for result in results) == 29
        assert await _value(ledger) == await _value(other) == 30
        # A refusal from an old view would be wrong.
        await add(other, Add(name="a", amount=-30), "down")
        assert (await add(ledger, Add(name="a", amount=30, limit=30), "up")).value == {"value": 30}
    finally:
        await other.close()


class Overtaken(DiskStore):
    """A disk store on which another writer wins each entry number while `overtake` is set."""

    overtake: Callable[[], None] | None = None

    def put_if_absent(self, name: str, data: bytes) -> None:
        if self.overtake is not None and name.startswith("log/"):
            self.overtake()
        super().put_if_absent(name, data)


async def test_losing_every_race_is_contention_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.ledger.writer._MAX_ROUNDS", 6)
    loop, seen = asyncio.get_running_loop(), 0
    store = Overtaken(tmp_path / "store")
    other = open_ledger(DiskStore(tmp_path / "store"), tmp_path / "other")
    ledger = open_ledger(store, tmp_path / "view")

    def overtake() -> None:
        nonlocal seen
        seen += 1
        asyncio.run_coroutine_threadsafe(add(other, Add(name="b", amount=1), f"other-{seen}"), loop).result(60)

    try:
        store.overtake = overtake
        with pytest.raises(Contention):
            await add(ledger, Add(name="a", amount=1), "one")
        assert seen == 6
        assert await _value(other) == 0
        assert await _value(other, "b") == 6
        store.overtake = None
        assert (await add(ledger, Add(name="a", amount=1), "one")).value == {"value": 1}
    finally:
        await ledger.close()
        await other.close()


async def test_deleted_or_damaged_view_is_rebuilt_from_the_log(
    ledger: Ledger[Add], store: ObjectStore, tmp_path: Path
) -> None:
    await asyncio.gather(*(add(ledger, Add(name=f"n{n % 7}", amount=n), f"r{n}") for n in range(80)))
    kept, revision = await ledger.read(1, everything)
    fresh = open_ledger(store, tmp_path / "fresh")
    assert await fresh.read(1, everything) == (kept, revision)
    # A replica that never saw a request knows its request id.
    assert (await add(fresh, Add(name="n3", amount=10), "r10")).revision.entry <= revision.entry
    with pytest.raises(RequestIdReused):
        await add(fresh, Add(name="n4", amount=10), "r10")
    await fresh.close()
    # A view is kept across a restart, and rebuilt if it is damaged.
    again = open_ledger(store, tmp_path / "fresh")
    assert await again.read(1, everything) == (kept, revision)
    await again.close()
    for path in (tmp_path / "fresh").glob("shard-1.sqlite*"):
        path.write_bytes(b"damaged" * 1000)
    again = open_ledger(store, tmp_path / "fresh")
    assert await again.read(1, everything) == (kept, revision)
    await again.close()


async def test_reads_are_stale_only_with_max_staleness(ledger: Ledger[Add], store: ObjectStore, tmp_path: Path) -> None:
    assert await _value(ledger) == 0
    other = open_ledger(store, tmp_path / "other")
    await add(other, Add(name="a", amount=7), "one")
    await other.close()
    stale, _ = await ledger.read(1, lambda db: value_of(db, "a"), max_staleness=timedelta(hours=1))
    assert stale == 0
    assert await _value(ledger) == 7


async def test_watch_resumes_from_any_revision_without_a_gap(
    ledger: Ledger[Add], store: ObjectStore, tmp_path: Path
) -> None:
    seen: list[Revision] = []
    amounts: list[int] = []

    async def follow(after: Revision, count: int) -> None:
        async for change in ledger.watch(1, after):
            seen.append(change.revision)
            amounts.append(change.body["amount"])
            if len(seen) >= count:
                return

    other = open_ledger(store, tmp_path / "other")
    watching = asyncio.create_task(follow(ledger.beginning(1), 45))
    writers = [
        add(ledger if number % 3 else other, Add(name="a", amount=number), f"r{number}") for number in range(1, 91)
    ]
    results = await asyncio.gather(*writers)
    await watching
    # The watch ended halfway; the next watch resumes from its last revision.
    await follow(seen[-1], 90)
    assert seen == sorted((result.revision for result in results), key=lambda revision: revision.place)
    assert sorted(amounts) == list(range(1, 91))
    await other.close()


async def test_concurrent_watches_share_their_polls_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no watch reads the view while there is no new entry."""
    store = CountingStore(tmp_path / "store")
    ledger, other = open_ledger(store, tmp_path / "view"), open_ledger(store, tmp_path / "other")
    await add(other, Add(name="a", amount=1), "one")
    after = (await ledger.read(1, lambda db: None))[1]
    snapshots: list[View] = []
    snapshot = View.snapshot

    def counted(self: View) -> Any:
        snapshots.append(self)
        return snapshot(self)

    monkeypatch.setattr(View, "snapshot", counted)
    store.read.clear()
    polls = [ledger.changes(1, after, max_staleness=timedelta(0)) for _ in range(200)]
    assert await asyncio.gather(*polls) == [((), after)] * 200
    # Two polls on an idle machine: watches that arrive during a poll share the next one.
    assert (store.read["log"] <= 20, snapshots) == (True, [])
    await add(other, Add(name="a", amount=1), "two")
    polls = [ledger.changes(1, after, max_staleness=timedelta(0)) for _ in range(200)]
    assert {len(found) for found, _ in await asyncio.gather(*polls)} == {1}
    assert store.read["log"] <= 50
    await ledger.close()
    await other.close()


async def test_malformed_and_foreign_revisions_are_refused(ledger: Ledger[Add]) -> None:
    result = await add(ledger, Add(name="a", amount=1), "one")
    at = result.revision
    assert Revision.parse(str(at)) == at
    for text in ("", "x", str(at) + "-1", str(at).upper().replace("-1-", "--"), f"{at.store_id}-01-1-0"):
        with pytest.raises(BadRevision):
            Revision.parse(text)

    def moved(**fields: object) -> Revision:
        return Revision(**(vars(at) | fields))

    for revision, expected in [
        (moved(store_id="0" * 20), StoreChanged),
        (moved(shard=0), BadRevision),
        (moved(entry=9), RevisionAhead),
    ]:
        with pytest.raises(expected):
            await ledger.changes(1, revision)


async def test_view_folder_of_another_process_and_store_of_another_ledger_are_refused(
    ledger: Ledger[Add], store: ObjectStore, tmp_path: Path
) -> None:
    with pytest.raises(ViewInUse):
        open_ledger(store, tmp_path / "view")
    with pytest.raises(StoreMismatch):
        open_ledger(store, tmp_path / "other", shards=3)

    class Other(Counters):
        name = "other"

    with pytest.raises(StoreMismatch):
        Ledger.open(store, Other(), shards=2, view_folder=tmp_path / "other")
    await ledger.close()
    with pytest.raises(Closed):
        await _value(ledger)


async def test_damaged_entry_fails_reads_and_writes(store: ObjectStore, tmp_path: Path) -> None:
    ledger = open_ledger(store, tmp_path / "view")
    for number in range(4):
        await add(ledger, Add(name="a", amount=1), f"r{number}")
    store_id = ledger.store_id
    await ledger.close()
    second = store.get(entry_name(1, 2))
    assert decode(second, store_id=store_id, shard=1, number=2).events[0].tenant == "shop"
    for broken in (second[:-9], second.replace(b'"amount":1', b'"amount":2'), store.get(entry_name(1, 3)), None):
        if broken is None:
            store.delete(entry_name(1, 2))
        else:
            store.put(entry_name(1, 2), broken)
        fresh = open_ledger(store, tmp_path / f"fresh-{broken and len(broken)}-{broken == second}")
        with pytest.raises(Damaged):
            await _value(fresh)
        with pytest.raises(Damaged):
            await add(fresh, Add(name="a", amount=1), "more")
        await fresh.close()


class Losing(DiskStore):
    """A disk store whose puts can fail, before or after the object is written."""

    lose: Callable[[str], str] = staticmethod(lambda name: "")

    def put_if_absent(self, name: str, data: bytes) -> None:
        how = self.lose(name)
        if how == "before":
            raise StoreUnavailable("lost before")
        super().put_if_absent(name, data)
        if how == "after":
            raise StoreUnavailable("lost after")


async def test_lost_response_of_a_put_is_resolved_by_the_write_id(tmp_path: Path) -> None:
    """The retry finds the ledger's own entry: one effect, and the right response."""
    store = Losing(tmp_path / "store")
    ledger = open_ledger(store, tmp_path / "view")
    lost: list[str] = []

    def lose(name: str) -> str:
        lost.append(name)
        return "after" if lost.count(name) == 1 else ""

    store.lose = lose
    results = [await add(ledger, Add(name="a", amount=1), f"r{number}") for number in range(5)]
    assert [result.value["value"] for result in results] == [1, 2, 3, 4, 5]
    assert await _value(ledger) == 5
    await ledger.close()


@pytest.mark.parametrize("how", ["before", "after"])
async def test_request_with_an_unknown_outcome_can_be_repeated(tmp_path: Path, how: str) -> None:
    store = Losing(tmp_path / "store")
    ledger = open_ledger(store, tmp_path / "view")
    assert await _value(ledger) == 0
    store.lose = lambda name: how if name.startswith("log/") else ""
    # A put is repeated until it is settled, so the ObjectExists of the second put would settle "after".
    if how == "after":
        store.lose = lambda name: "before" if store.list("log/") else "after"
    with pytest.raises(OutcomeUnknown):
        await add(ledger, Add(name="a", amount=1), "one", timeout_s=0.3)
    # No other entry is put before that put is settled.
    with pytest.raises(NotCommitted):
        await add(ledger, Add(name="a", amount=10), "two", timeout_s=0.3)
    store.lose = lambda name: ""
    result = await add(ledger, Add(name="a", amount=1), "one")
    assert result.value == {"value": 1}
    assert await _value(ledger) == 1
    await ledger.close()


async def test_closing_with_an_unsettled_put_reports_an_unknown_outcome(tmp_path: Path) -> None:
    store = Losing(tmp_path / "store")
    ledger = open_ledger(store, tmp_path / "view")
    assert await _value(ledger) == 0
    store.lose = lambda name: "before"
    doubtful = asyncio.create_task(add(ledger, Add(name="a", amount=1), "one"))
    await asyncio.sleep(0.1)
    waiting = asyncio.create_task(add(ledger, Add(name="a", amount=1), "two"))
    await asyncio.sleep(0.1)
    await ledger.close()
    with pytest.raises(OutcomeUnknown):
        await doubtful
    with pytest.raises(Closed):
        await waiting


def test_shards_of_tenants_never_change() -> None:
    # Constants: a change would make every existing store unreadable.
    assert [shard_of(tenant, 16) for tenant in ("default", "shop", "mara", "t1")] == [13, 13, 14, 10]


async def test_contending_replicas_all_make_progress(store: ObjectStore, tmp_path: Path) -> None:
    """Three replicas with four clients each that send without a pause: no request fails with CONTENTION, and every
    replica commits. The shares depend on chance and on the store."""
    ledgers = [open_ledger(store, tmp_path / f"view-{number}") for number in range(3)]
    commits = [0, 0, 0]

    async def client(number: int, name: str) -> None:
        while sum(commits) < 600:
            await add(ledgers[number], Add(name="a", amount=1), f"{name}-{sum(commits)}-{commits[number]}")
            commits[number] += 1

    await asyncio.gather(*(client(number, f"{number}.{c}") for number in range(3) for c in range(4)))
    assert min(commits) > 0, commits
    assert await _value(ledgers[0]) == sum(commits)
    for ledger in ledgers:
        await ledger.close()
