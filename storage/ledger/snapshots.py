"""Snapshots: copies of derived views in the store, so that a new replica serves without a replay of the whole log.

The name is `checkpoints/<shard>/<entry, 20 digits>-<view format>.<the state machine's schema version>`; the snapshot is
the view after that entry. Snapshots are derived, like the views: a replica that finds none, or a damaged one, replays
the log instead.
"""

import os
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from storage.errors import Damaged, ObjectExists, ObjectMissing
from storage.ledger import frames
from storage.ledger.log import Log
from storage.ledger.segments import entries_after
from storage.ledger.state_machine import StateMachine
from storage.ledger.view import View
from storage.objects.base import ObjectStore, list_all

_FORMAT = 1
_CHUNK = 2**20
# The newest one, and the one before: a replica may still be reading it.
_KEPT = 2

_logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A snapshot's object name and the parts of it. `flavour`: `<view format>.<schema version>`."""

    name: str
    shard: int
    entry: int
    flavour: str


def snapshots(store: ObjectStore, shard: int) -> list[Snapshot]:
    """All snapshots of a shard, oldest first. Objects with other names are skipped."""
    prefix = f"checkpoints/{shard}/"
    found = []
    for info in list_all(store, prefix):
        entry, _, flavour = info.name.removeprefix(prefix).partition("-")
        if entry.isdecimal() and flavour:
            found.append(Snapshot(name=info.name, shard=shard, entry=int(entry), flavour=flavour))
    return found


def write_snapshot(store: ObjectStore, view: View) -> Snapshot:
    """Write a snapshot of `view` as it is now, unless it already exists. One thread at a time. Raises the errors of a
    put."""
    path = view.path.with_suffix(".copy")
    try:
        position = view.copy_to(path)
        payload = b"".join(_compressed(path))
        size = path.stat().st_size
    finally:
        path.unlink(missing_ok=True)
    header = {"format": _FORMAT, "identity": view.identity, "entry": position.entry, "bytes": size}
    name = f"checkpoints/{view.shard}/{position.entry:020d}-{view.flavour}"
    with suppress(ObjectExists):
        store.put_if_absent(name, frames.encode(header, payload))
    return Snapshot(name=name, shard=view.shard, entry=position.entry, flavour=view.flavour)


def unpack_snapshot(store: ObjectStore, snapshot: Snapshot, identity: str | None, path: Path) -> None:
    """Write the SQLite file in a snapshot to `path`.

    Raises ObjectMissing, StoreUnavailable, and Damaged, also when its identity is not `identity` (None: any identity).
    """
    name = snapshot.name
    header, payload = frames.decode(name, store.get(name))
    try:
        fits = header["format"] == _FORMAT and (identity is None or header["identity"] == identity)
        fits = fits and header["entry"] == snapshot.entry
        size = int(header["bytes"])
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(name, f"it is not a snapshot ({type(error).__name__})") from error
    if not fits:
        raise Damaged(name, "its format, store, state machine or entry is not the expected one")
    with path.open("wb") as file:
        # A view may be larger than the memory of a small pod: write it piece by piece.
        for piece in frames.pieces(name, payload, size):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def restore_newest(store: ObjectStore, view: View) -> None:
    """Replace the content of `view`, which must not be in use yet, by the newest undamaged snapshot ahead of it.

    Raises StoreUnavailable, StoreRefused.
    """
    mine = [c for c in snapshots(store, view.shard) if c.flavour == view.flavour]
    for snapshot in reversed([c for c in mine if c.entry > view.position.entry]):
        path = view.path.with_suffix(".restoring")
        try:
            unpack_snapshot(store, snapshot, view.identity, path)
            view.install(path, snapshot.entry)
        except (Damaged, ObjectMissing) as error:
            _logger.warning("snapshot not used", error=error.message)
            continue
        finally:
            path.unlink(missing_ok=True)
        _logger.info("view restored", shard=view.shard, entry=view.position.entry)
        return


@contextmanager
def whole_view(log: Log, shard: int, state_machine: StateMachine[Any], path: Path) -> Iterator[View]:
    """A view of a shard's whole present log, in a new file at `path`. Raises the errors of reading the log."""
    with closing(View(path, store_id=log.store_id, shard=shard, state_machine=state_machine)) as view:
        restore_newest(log.store, view)
        for entry in entries_after(log, shard, view.position.entry):
            view.replay(entry)
        yield view


def superseded(found: list[Snapshot]) -> list[Snapshot]:
    """The snapshots of `found` (one shard's, oldest first) that newer ones of the same flavour supersede."""
    flavours = {snapshot.flavour for snapshot in found}
    kept = {c.name for flavour in flavours for c in [c for c in found if c.flavour == flavour][-_KEPT:]}
    return [snapshot for snapshot in found if snapshot.name not in kept]


def _compressed(path: Path) -> Iterator[bytes]:
    writer = zlib.compressobj(1)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield writer.compress(chunk)
    yield writer.flush()
