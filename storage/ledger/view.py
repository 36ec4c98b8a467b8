"""One shard's derived view: the state machine's tables and the history of events, in one SQLite file that can be
deleted.

The log is authoritative; the file only saves a replay. After a crash the file may be behind the log, never ahead of it
and never inconsistent (WAL with synchronous=NORMAL); the missing entries are read from the log.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from json import dumps, loads
from pathlib import Path
from threading import Lock
from typing import Any

import structlog

from storage.errors import Damaged, RequestIdReused
from storage.ledger.entry import Entry, Revision
from storage.ledger.state_machine import CommittedEvent, StateMachine

FORMAT = 2
# Request ids are remembered for 7 days, by the log's time.
REQUEST_MEMORY_US = 7 * 24 * 3600 * 1_000_000

_TABLES = """
CREATE TABLE ledger_view (
    identity TEXT NOT NULL, entry INTEGER NOT NULL, idx INTEGER NOT NULL, time_us INTEGER NOT NULL,
    write_id TEXT NOT NULL);
CREATE TABLE ledger_history (
    entry INTEGER NOT NULL, idx INTEGER NOT NULL, time_us INTEGER NOT NULL, kind TEXT NOT NULL, tenant TEXT NOT NULL,
    request_id TEXT NOT NULL, request_digest TEXT NOT NULL, actor TEXT NOT NULL, on_behalf_of TEXT NOT NULL,
    effect TEXT NOT NULL, result TEXT NOT NULL, PRIMARY KEY (entry, idx));
CREATE INDEX ledger_requests ON ledger_history (tenant, request_id, entry, idx);
CREATE INDEX ledger_tenants ON ledger_history (tenant, entry, idx);
"""

_logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Position:
    """The last event in a view, and the time and write id of its entry."""

    entry: int
    index: int
    time_us: int
    write_id: str


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """The first answer to a request id."""

    value: dict[str, Any]
    revision: Revision


class View:
    """`begin`, then `keep` or `drop`, are for the one writing thread; `snapshot` is for any thread."""

    def __init__(self, path: Path, *, store_id: str, shard: int, state_machine: StateMachine[Any]) -> None:
        """Opens the file at `path`; starts an empty one when it is missing, damaged or of another identity."""
        self.path = path
        self._store_id = store_id
        self.shard = shard
        self.state_machine = state_machine
        self.flavour = f"{FORMAT}.{state_machine.schema_version}"
        self.identity = dumps([FORMAT, store_id, shard, state_machine.name, state_machine.schema_version])
        self._lock = Lock()
        self._idle: list[sqlite3.Connection] = []
        try:
            self._db = self._open()
        except sqlite3.DatabaseError as error:
            _logger.warning("view damaged, rebuilding it", path=str(path), error=str(error))
            self._remove()
            self._db = self._open()
        self.position = self._position(self._db)

    def restart(self) -> None:
        """Empty the view, for a replay from the beginning of the log."""
        self.close()
        self._remove()
        self._db = self._open()
        self.position = self._position(self._db)

    def install(self, path: Path, entry: int) -> None:
        """Replace this view by its copy at `path`, a file in the view's own folder that ends at `entry`. Only before
        this view is in use.

        Raises Damaged, and stays as it was, if the file is not such a copy.
        """
        with closing(sqlite3.connect(path)) as copy:
            copy.row_factory = sqlite3.Row
            try:
                fits = self._is_mine(copy) and self._position(copy).entry == entry
            except sqlite3.DatabaseError:
                fits = False
        if not fits:
            raise Damaged(path.name, f"it is not a view of shard {self.shard} at entry {entry}")
        self.close()
        self._remove()
        path.rename(self.path)
        self._db = self._open()
        self.position = self._position(self._db)

    def copy_to(self, path: Path) -> Position:
        """Write a consistent copy of the view to `path`; callable from any thread. Returns the copy's position."""
        path.unlink(missing_ok=True)
        with closing(self._connect()) as db:
            db.execute("VACUUM INTO ?", (str(path),))
        with closing(sqlite3.connect(path)) as copy:
            copy.row_factory = sqlite3.Row
            return self._position(copy)

    def changes_since(self, entry: int) -> int:
        """The number of events in the view after `entry`; callable from any thread."""
        with self.snapshot() as (db, _):
            count = db.execute("SELECT count(*) FROM ledger_history WHERE entry > ?", (entry,)).fetchone()[0]
        return int(count)

    def begin(self) -> None:
        """Start a transaction, which is invisible to readers until `keep`."""
        self._db.execute("BEGIN IMMEDIATE")

    @property
    def begun(self) -> sqlite3.Connection:
        """The connection of the open transaction."""
        return self._db

    def write(self, event: CommittedEvent) -> str:
        """Apply one event within the transaction. Returns the state machine's answer, a JSON object, as stored text."""
        result = dumps(self.state_machine.apply(self._db, event), allow_nan=False)
        self._db.execute(
            "INSERT INTO ledger_history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *event.revision.place,
                event.time_us,
                event.kind,
                event.tenant,
                event.request_id,
                event.request_digest,
                event.actor,
                event.on_behalf_of,
                dumps(event.body),
                result,
            ),
        )
        return result

    def keep(self, entry: Entry) -> None:
        """Commit the transaction, which must hold all events of `entry`."""
        position = Position(
            entry=entry.number, index=len(entry.events) - 1, time_us=entry.time_us, write_id=entry.write_id
        )
        self._db.execute(
            "UPDATE ledger_view SET entry = ?, idx = ?, time_us = ?, write_id = ?",
            (position.entry, position.index, position.time_us, position.write_id),
        )
        self._db.execute("COMMIT")
        self.position = position

    def drop(self) -> None:
        """Roll the transaction back, if one is open."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """A savepoint: when the block raises, only its part of the transaction is rolled back."""
        self._db.execute("SAVEPOINT attempt")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK TO attempt")
            raise
        finally:
            self._db.execute("RELEASE attempt")

    def replay(self, entry: Entry) -> None:
        """Apply `entry`, the next one of the log, in a transaction of its own."""
        self.begin()
        try:
            for index, event in enumerate(entry.events):
                self.write(CommittedEvent.of(event, entry.revision(index), entry.time_us))
            self.keep(entry)
        finally:
            self.drop()

    def remembered(self, tenant: str, request_id: str, digest: str, now_us: int) -> Remembered | None:
        """The first answer to a request id; None for a new one. Raises RequestIdReused when the body was another."""
        row = self._db.execute(
            "SELECT entry, idx, request_digest, result FROM ledger_history"
            " WHERE tenant = ? AND request_id = ? AND time_us > ? ORDER BY entry DESC, idx DESC LIMIT 1",
            (tenant, request_id, now_us - REQUEST_MEMORY_US),
        ).fetchone()
        if row is None:
            return None
        if row["request_digest"] != digest:
            raise RequestIdReused(
                f"the request id {request_id!r} was used for another request; use a new one", request_id=request_id
            )
        return Remembered(value=loads(row["result"]), revision=self._revision(row["entry"], row["idx"]))

    @contextmanager
    def snapshot(self) -> Iterator[tuple[sqlite3.Connection, Revision]]:
        """A read-only connection to a consistent snapshot of the view, and the snapshot's revision."""
        with self._lock:
            db = self._idle.pop() if self._idle else None
        if db is None:
            db = self._connect()
            db.execute("PRAGMA query_only = ON")
        try:
            db.execute("BEGIN")
            position = self._position(db)
            yield db, self._revision(position.entry, position.index)
        finally:
            db.execute("ROLLBACK")
            with self._lock:
                self._idle.append(db)

    def close(self) -> None:
        self._db.close()
        with self._lock:
            for db in self._idle:
                db.close()
            self._idle.clear()

    def _revision(self, entry: int, index: int) -> Revision:
        return Revision(store_id=self._store_id, shard=self.shard, entry=entry, index=index)

    def _position(self, db: sqlite3.Connection) -> Position:
        row = db.execute("SELECT entry, idx, time_us, write_id FROM ledger_view").fetchone()
        return Position(entry=row["entry"], index=row["idx"], time_us=row["time_us"], write_id=row["write_id"])

    def _connect(self) -> sqlite3.Connection:
        # No implicit transactions. A connection may be used by another thread than the one that opened it.
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=30)
        db.row_factory = sqlite3.Row
        return db

    def _open(self) -> sqlite3.Connection:
        db = self._connect()
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            if not self._is_mine(db):
                db.close()
                self._remove()
                db = self._connect()
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
                self._create(db)
        except BaseException:
            db.close()
            raise
        return db

    def _is_mine(self, db: sqlite3.Connection) -> bool:
        try:
            row = db.execute("SELECT identity FROM ledger_view").fetchone()
        except sqlite3.OperationalError:
            return False
        return row is not None and row["identity"] == self.identity

    def _create(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        for statement in _TABLES.split(";"):
            db.execute(statement)
        self.state_machine.create(db)
        db.execute("INSERT INTO ledger_view VALUES (?, 0, 0, 0, '')", (self.identity,))
        db.execute("COMMIT")

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)


def changes_after(db: sqlite3.Connection, after: Revision, limit: int) -> Sequence[CommittedEvent]:
    """Up to `limit` events of a snapshot after `after`, in order."""
    rows = db.execute(
        "SELECT * FROM ledger_history WHERE (entry, idx) > (?, ?) ORDER BY entry, idx LIMIT ?", (*after.place, limit)
    )
    return [change_of(row, after.store_id, after.shard) for row in rows]


def all_changes(db: sqlite3.Connection, store_id: str, shard: int) -> Iterator[CommittedEvent]:
    """All events of a snapshot, in order."""
    for row in db.execute("SELECT * FROM ledger_history ORDER BY entry, idx"):
        yield change_of(row, store_id, shard)


def change_of(row: sqlite3.Row, store_id: str, shard: int) -> CommittedEvent:
    """The event in a row of ledger_history."""
    revision = Revision(store_id=store_id, shard=shard, entry=row["entry"], index=row["idx"])
    return CommittedEvent(
        revision=revision,
        time_us=row["time_us"],
        kind=row["kind"],
        tenant=row["tenant"],
        request_id=row["request_id"],
        request_digest=row["request_digest"],
        actor=row["actor"],
        on_behalf_of=row["on_behalf_of"],
        body=loads(row["effect"]),
    )
