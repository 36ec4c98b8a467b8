"""An inspection finds faults in a log and in the objects derived from it, and names the objects."""

import asyncio
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from storage.errors import Damaged, ObjectMissing, StoreMismatch
from storage.inspect.report import Report
from storage.inspect.store import Inspection
from storage.ledger.entry import decode, encode, entry_name
from storage.ledger.log import METADATA_NAME, RESTORING, Log, Metadata
from storage.ledger.segments import RUN, segment_name, write_missing
from storage.ledger.snapshots import snapshots, write_snapshot
from storage.ledger.view import View
from storage.objects.blobs import Blobs
from storage.objects.disk import DiskStore
from tests.storage.counters import Add, Counters, add, fill, open_ledger

COUNT = RUN + 40


def _wait_for_checkpoint(store: DiskStore) -> None:
    end = time.monotonic() + 60
    while not snapshots(store, 1):
        assert time.monotonic() < end
        time.sleep(0.02)


async def _make(root: Path) -> None:
    store = DiskStore(root)
    fill(store, 1, COUNT)
    ledger = open_ledger(store, root / ".views" / "0")
    await ledger.read(1, lambda db: None)
    await asyncio.to_thread(_wait_for_checkpoint, store)
    for number in range(5):
        await add(ledger, Add(name="a", amount=number + 1), f"r{number}")
    await ledger.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a segment, a checkpoint, the view of a server and some entries after them."""
    root = tmp_path_factory.mktemp("made") / "store"
    asyncio.run(_make(root))
    return root


@pytest.fixture
def disk(made: Path, tmp_path: Path) -> DiskStore:
    """A copy of the store, to be damaged."""
    shutil.copytree(made, tmp_path / "store")
    return DiskStore(tmp_path / "store")


def _inspect(store: DiskStore, tmp_path: Path) -> Report:
    folder = tmp_path / "inspection"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    return Inspection(store, {"counters": Counters()}, folder).run()


def _found(report: Report) -> list[tuple[str, str]]:
    return [(str(found.severity), found.object) for found in report.findings]


def _change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_sound_store_has_no_findings(disk: DiskStore, tmp_path: Path) -> None:
    report = _inspect(disk, tmp_path)
    assert (report.sound, report.findings) == (True, [])
    assert report.revisions == [0, COUNT + 5]
    assert report.counts == {"entries": COUNT + 5, "mutations": COUNT + 5, "segments": 1, "checkpoints": 1, "views": 1}


def test_flipped_bit_in_an_entry_is_damage(disk: DiskStore, tmp_path: Path) -> None:
    name = entry_name(1, COUNT + 3)
    _change(disk.root / name)
    report = _inspect(disk, tmp_path)
    assert not report.sound
    assert ("damage", name) in _found(report)
    # Objects before the entry are compared; the view of the server is beyond it and cannot be.
    assert ("note", str(disk.root / ".views/0/shard-1.sqlite")) in _found(report)
    assert len(_found(report)) == 3


def test_missing_entry_is_damage(disk: DiskStore, tmp_path: Path) -> None:
    disk.delete(entry_name(1, 700))
    assert ("damage", entry_name(1, 700)) in _found(_inspect(disk, tmp_path))


def test_entry_with_an_earlier_time_is_damage(disk: DiskStore, tmp_path: Path) -> None:
    name = entry_name(1, COUNT + 2)
    entry = decode(disk.get(name), store_id=Metadata.read(disk).store_id, shard=1, number=COUNT + 2)
    disk.put(name, encode(type(entry)(**{**vars(entry), "time_us": 5})))
    report = _inspect(disk, tmp_path)
    assert "damage" in {severity for severity, found in _found(report) if found == name}


@pytest.mark.parametrize("how", ["flipped", "of other entries"])
def test_damaged_or_foreign_segment_is_found(disk: DiskStore, tmp_path: Path, how: str) -> None:
    name = segment_name(1, 1)
    if how == "flipped":
        _change(disk.root / name)
    else:
        other = DiskStore(tmp_path / "other")
        other.put(METADATA_NAME, disk.get(METADATA_NAME))
        fill(other, 1, RUN)
        entry = entry_name(1, 5)
        changed = decode(other.get(entry), store_id=Metadata.read(other).store_id, shard=1, number=5)
        other.put(entry, encode(type(changed)(**{**vars(changed), "write_id": "another"})))
        write_missing(Log.open(other, book="counters", shards=2), 1, RUN, lambda: False)
        disk.put(name, other.get(name))
    report = _inspect(disk, tmp_path)
    assert (_found(report), report.sound) == ([("derived", name)], False)


def test_segment_ahead_of_the_log_is_found(disk: DiskStore, tmp_path: Path) -> None:
    name = segment_name(1, 1 + 5 * RUN)
    disk.put(name, disk.get(segment_name(1, 1)))
    assert _found(_inspect(disk, tmp_path)) == [("derived", name)]


def test_checkpoint_that_differs_from_the_log_is_found(disk: DiskStore, tmp_path: Path) -> None:
    (snapshot,) = snapshots(disk, 1)
    _change(disk.root / snapshot.name)
    assert _found(_inspect(disk, tmp_path)) == [("derived", snapshot.name)]
    # A valid checkpoint of wrong tables.
    disk.delete(snapshot.name)
    path = tmp_path / "wrong" / "shard-1.sqlite"
    path.parent.mkdir()
    path.write_bytes((disk.root / ".views/0/shard-1.sqlite").read_bytes())
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE counters SET value = value + 1 WHERE name = 'n3'")
        db.commit()
    view = View(path, store_id=Metadata.read(disk).store_id, shard=1, state_machine=Counters())
    written = write_snapshot(disk, view)
    view.close()
    report = _inspect(disk, tmp_path)
    assert _found(report) == [("derived", written.name)]
    assert report.findings[0].why == "its tables differ from the log: counters"


def test_view_that_differs_from_the_log_is_found(disk: DiskStore, tmp_path: Path) -> None:
    path = disk.root / ".views/0/shard-1.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("DELETE FROM ledger_history WHERE entry = 12")
        db.commit()
    assert _found(_inspect(disk, tmp_path)) == [("derived", str(path))]


def test_foreign_and_unneeded_objects_are_listed(disk: DiskStore, tmp_path: Path) -> None:
    orphan = Blobs(disk).put("shop", b"unneeded")
    disk.put("probe/0/a", b"")
    disk.put("notes.txt", b"")
    disk.put("log/1/latest", b"")
    disk.put("zebra/1", b"")
    report = _inspect(disk, tmp_path)
    assert report.sound
    assert sorted(_found(report)) == [
        ("garbage", "probe/0/a"),
        ("garbage", orphan.name),
        ("note", "log/1/latest"),
        ("note", "notes.txt"),
        ("note", "zebra/1"),
    ]


def test_missing_invalid_and_incomplete_stores_are_errors(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "store")
    with pytest.raises(ObjectMissing):
        _inspect(store, tmp_path)
    store.put(METADATA_NAME, b"{}")
    with pytest.raises(Damaged):
        _inspect(store, tmp_path)
    whole = Metadata(store_id="0" * 20, book="counters", shards=2, created="")
    store.put(METADATA_NAME, whole.encode(RESTORING))
    with pytest.raises(StoreMismatch, match="is being restored"):
        _inspect(store, tmp_path)
    with pytest.raises(StoreMismatch, match="is being restored"):
        open_ledger(store, tmp_path / "view")
