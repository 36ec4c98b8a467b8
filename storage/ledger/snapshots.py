"""Copies of derived views in the store, so that a new replica serves without reading the history.

`checkpoints/<shard>/<entry, n20>-<view format>.<the book's schema version>`: one view that shows everything up to that
entry. Derived as the views are: whoever finds none, or a bad one, reads the log instead.
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
# The newest one, and one for who is reading it while a newer one is written.
_KEPT = 2

_logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Where a checkpoint is and what its name says. `flavour`: `<view format>.<schema version>`."""

    name: str
    shard: int
    entry: int
    flavour: str


def snapshots(store: ObjectStore, shard: int) -> list[Snapshot]:
    """All checkpoints of a shard, oldest first; what is called otherwise is left out."""
    prefix = f"checkpoints/{shard}/"
    found = []
    for info in list_all(store, prefix):
        entry, _, flavour = info.name.removeprefix(prefix).partition("-")
        if entry.isdecimal() and flavour:
            found.append(Snapshot(name=info.name, shard=shard, entry=int(entry), flavour=flavour))
    return found


def write_snapshot(store: ObjectStore, view: View) -> Snapshot:
    """Put a copy of what `view` shows now, unless there is one. One thread at a time. Raises what puts raise."""
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
    """Write the SQLite file that a checkpoint holds to `path`.

    Raises ObjectMissing, StoreUnavailable, and Damaged, also when it is not of `identity` (None: whatever it is of).
    """
    name = snapshot.name
    header, payload = frames.decode(name, store.get(name))
    try:
        fits = header["format"] == _FORMAT and (identity is None or header["identity"] == identity)
        fits = fits and header["entry"] == snapshot.entry
        size = int(header["bytes"])
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(name, f"it is no checkpoint ({type(error).__name__})") from error
    if not fits:
        raise Damaged(name, "it is of another store, book or entry than its name says")
    with path.open("wb") as file:
        # A view may be larger than what a small pod holds in memory.
        for piece in frames.pieces(name, payload, size):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def restore_newest(store: ObjectStore, view: View) -> None:
    """Let `view`, which nobody uses yet, show the newest checkpoint, if that is ahead of it and whole.

    Raises StoreUnavailable, StoreRefused.
    """
    mine = [c for c in snapshots(store, view.shard) if c.flavour == view.flavour]
    for snapshot in reversed([c for c in mine if c.entry > view.position.entry]):
        path = view.path.with_suffix(".restoring")
        try:
            unpack_snapshot(store, snapshot, view.identity, path)
            view.install(path, snapshot.entry)
        except (Damaged, ObjectMissing) as error:
            _logger.warning("checkpoint is not used", error=error.message)
            continue
        finally:
            path.unlink(missing_ok=True)
        _logger.info("view restored", shard=view.shard, entry=view.position.entry)
        return


@contextmanager
def whole_view(log: Log, shard: int, state_machine: StateMachine[Any], path: Path) -> Iterator[View]:
    """A view, in a new file at `path`, of all that a shard's log holds now. Raises what reading it raises."""
    with closing(View(path, store_id=log.store_id, shard=shard, state_machine=state_machine)) as view:
        restore_newest(log.store, view)
        for entry in entries_after(log, shard, view.position.entry):
            view.replay(entry)
        yield view


def superseded(found: list[Snapshot]) -> list[Snapshot]:
    """Those of a shard's checkpoints, oldest first, that newer ones of their flavour replace."""
    flavours = {snapshot.flavour for snapshot in found}
    kept = {c.name for flavour in flavours for c in [c for c in found if c.flavour == flavour][-_KEPT:]}
    return [snapshot for snapshot in found if snapshot.name not in kept]


def _compressed(path: Path) -> Iterator[bytes]:
    writer = zlib.compressobj(1)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield writer.compress(chunk)
    yield writer.flush()
