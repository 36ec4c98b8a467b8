"""Segments and checkpoints: they replace reads of the log, and if they are missing or damaged no result changes."""

import asyncio
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import Damaged
from storage.ledger.entry import Entry, RecordedEvent, entry_name
from storage.ledger.ledger import Ledger
from storage.ledger.segments import RUN, pack, segment_name, segments, unpack
from storage.ledger.snapshots import snapshots
from storage.ledger.view import FORMAT
from storage.objects.base import ObjectStore
from storage.objects.disk import DiskStore
from tests.conftest import Eventually
from tests.storage.counters import Add, Counters, CountingStore, add, everything, fill, open_ledger, value_of

COUNT = 2 * RUN + 300


async def _rows(store: ObjectStore, folder: Path) -> object:
    ledger = open_ledger(store, folder)
    try:
        return await ledger.read(1, everything)
    finally:
        await ledger.close()


def _drop_checkpoints(store: ObjectStore) -> None:
    for snapshot in snapshots(store, 1):
        store.delete(snapshot.name)


def _flip(root: Path, name: str) -> None:
    path = root / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


async def test_new_replica_reads_checkpoint_and_segments_instead_of_entries(
    tmp_path: Path, eventually: Eventually
) -> None:
    store = CountingStore(tmp_path / "store")
    fill(store, 1, COUNT)
    first = open_ledger(store, tmp_path / "first")
    expected = await first.read(1, everything)
    assert store.read["log"] >= COUNT
    await asyncio.to_thread(eventually, lambda: bool(snapshots(store, 1)))
    await first.close()
    assert segments(store, 1) == {1, 1 + RUN}
    (snapshot,) = snapshots(store, 1)
    assert snapshot.entry == COUNT

    # With a checkpoint.
    store.read.clear()
    assert await _rows(store, tmp_path / "second") == expected
    assert store.read["checkpoints"] == 1
    assert store.read["log"] <= 3
    # With segments only: entries are read singly if no segment has them, and a few before segments are listed.
    _drop_checkpoints(store)
    store.read.clear()
    assert await _rows(store, tmp_path / "third") == expected
    assert store.read["segments"] == 2
    assert store.read["log"] < COUNT - 2 * RUN + 100
    _drop_checkpoints(store)
    # A damaged segment changes no result.
    _flip(store.root, segment_name(1, 1))
    assert await _rows(store, tmp_path / "fourth") == expected
    # A damaged checkpoint changes no result.
    _drop_checkpoints(store)
    refilled = open_ledger(store, tmp_path / "fifth")
    assert await refilled.read(1, everything) == expected
    await asyncio.to_thread(eventually, lambda: bool(snapshots(store, 1)))
    await refilled.close()
    _flip(store.root, snapshots(store, 1)[0].name)
    assert await _rows(store, tmp_path / "sixth") == expected


async def test_checkpoint_of_another_schema_is_not_used(
    tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CountingStore(tmp_path / "store")
    fill(store, 1, RUN + 5)
    expected = await _rows_and_checkpoint(store, tmp_path / "first", eventually)
    monkeypatch.setattr(Counters, "schema_version", 2)
    store.read.clear()
    rows = await _rows_and_checkpoint(store, tmp_path / "second", eventually, already=1)
    assert store.read["checkpoints"] == 0
    assert rows[:-1] == expected[:-1]  # the last row is the identity of the view
    assert {snapshot.flavour for snapshot in snapshots(store, 1)} == {f"{FORMAT}.1", f"{FORMAT}.2"}


async def _rows_and_checkpoint(
    store: ObjectStore, folder: Path, eventually: Eventually, already: int = 0
) -> list[object]:
    ledger = open_ledger(store, folder)
    rows, _ = await ledger.read(1, everything)
    await asyncio.to_thread(eventually, lambda: len(snapshots(store, 1)) > already)
    await ledger.close()
    return list(rows)


async def test_writer_of_the_last_entry_of_a_run_writes_segment_and_checkpoint(
    store: ObjectStore, tmp_path: Path, eventually: Eventually
) -> None:
    """A replica that was suspended during all of it shows all entries."""
    suspended = open_ledger(store, tmp_path / "suspended")
    assert await suspended.read(1, lambda db: value_of(db, "n1"))
    ledger = open_ledger(store, tmp_path / "view")
    fill(store, 1, RUN - 1)
    last = await add(ledger, Add(name="n1", amount=1), "last")
    assert last.revision.entry == RUN
    await asyncio.to_thread(eventually, lambda: bool(snapshots(store, 1)))
    assert segments(store, 1) == {1}
    expected = await ledger.read(1, everything)
    assert await suspended.read(1, everything) == expected
    assert await _rows(store, tmp_path / "fresh") == expected
    await ledger.close()
    await suspended.close()


async def test_reader_without_maintenance_writes_no_derived_object(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "store")
    fill(store, 1, RUN)
    ledger = Ledger.open(store, Counters(), shards=2, view_folder=tmp_path / "view", maintenance=False)
    assert await ledger.read(1, lambda db: value_of(db, "n1"))
    await ledger.close()
    assert (snapshots(store, 1), segments(store, 1)) == ([], set())


async def test_checkpoint_is_due_after_many_changes_in_few_entries(
    tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that is due too early is written later, without another entry."""
    monkeypatch.setattr("storage.ledger.maintenance.CHANGES", 50)
    monkeypatch.setattr("storage.ledger.writer.CHANGES", 50)
    monkeypatch.setattr("storage.ledger.maintenance._MIN_PAUSE_FACTOR", 30)
    store = DiskStore(tmp_path / "store")
    ledger = open_ledger(store, tmp_path / "view")

    async def add_some(first: int) -> int:
        adding = [add(ledger, Add(name="n1", amount=1), f"{number}") for number in range(first, first + 60)]
        return max(result.revision.entry for result in await asyncio.gather(*adding))

    last = await add_some(0)
    await asyncio.to_thread(eventually, lambda: bool(snapshots(store, 1)))
    first = snapshots(store, 1)[-1].entry
    assert first <= last < RUN
    await add_some(60)
    await asyncio.to_thread(eventually, lambda: snapshots(store, 1)[-1].entry > first)
    expected = await ledger.read(1, everything)
    await ledger.close()
    assert await _rows(store, tmp_path / "fresh") == expected


def _has_checkpoint(store: DiskStore, entry: int) -> bool:
    return entry in {found.entry for found in snapshots(store, 1)}


async def test_superseded_checkpoints_are_removed(tmp_path: Path, eventually: Eventually) -> None:
    store = DiskStore(tmp_path / "store")
    for life in range(4):
        fill(store, 1, RUN, first=1 + life * RUN)
        ledger = open_ledger(store, tmp_path / f"view-{life}")
        await ledger.read(1, lambda db: None)
        upto = (life + 1) * RUN
        await asyncio.to_thread(eventually, partial(_has_checkpoint, store, upto))
        await ledger.close()
    assert [snapshot.entry for snapshot in snapshots(store, 1)] == [3 * RUN, 4 * RUN]
    assert len(segments(store, 1)) == 4


async def test_missing_entry_is_an_error_at_any_place(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "store")
    fill(store, 1, 200)
    store.delete(entry_name(1, 150))
    ledger = open_ledger(store, tmp_path / "view")
    with pytest.raises(Damaged, match=entry_name(1, 150)):
        await ledger.read(1, lambda db: None)
    await ledger.close()


def _entry(number: int, note: str) -> Entry:
    event = RecordedEvent(
        kind="add", tenant="t", request_id="r", request_digest="d", actor="a", on_behalf_of="", body={"note": note}
    )
    return Entry(store_id="0" * 20, shard=3, number=number, time_us=number, write_id="w", events=(event,))


@given(st.lists(st.text(max_size=30), min_size=1, max_size=5), st.data())
def test_any_change_of_a_segment_is_detected(notes: list[str], data: st.DataObject) -> None:
    entries = [_entry(number, note) for number, note in enumerate(notes, start=1025)]
    packed = pack("0" * 20, 3, entries)
    assert unpack("name", packed, store_id="0" * 20, shard=3) == entries
    place = data.draw(st.integers(0, len(packed) * 8 - 1))
    changed = bytearray(packed)
    changed[place // 8] ^= 1 << place % 8
    with pytest.raises(Damaged):
        unpack("name", bytes(changed), store_id="0" * 20, shard=3)
    with pytest.raises(Damaged):
        unpack("name", packed[: place // 8], store_id="0" * 20, shard=3)
    with pytest.raises(Damaged):
        unpack("name", packed, store_id="1" * 20, shard=3)
