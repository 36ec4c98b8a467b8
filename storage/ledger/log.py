"""The commit log on an object store: `log/<shard>/<n20>`, each number created once and never deleted."""

import random
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from json import dumps, loads
from threading import Event, Lock

import structlog

from storage.errors import (
    ClockSkew,
    Damaged,
    ObjectExists,
    ObjectMissing,
    OutcomeUnknown,
    StorageError,
    StoreMismatch,
    StoreRefused,
    StoreReplaced,
    StoreUnavailable,
)
from storage.ledger.entry import FORMAT, Entry, decode, encode, entry_name
from storage.objects.base import ObjectStore

METADATA_NAME = "store.json"
# In the place of the format's number, until a restore has ended.
RESTORING = "restoring"
MAX_SKEW_S = 2.0
_SKEW_CHECK_EVERY_S = 60.0
# For so long after it was asked for, the store is taken to be the same one.
IDENTITY_FRESH_S = 0.5

_logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Full jitter: the pause before try k is uniform between 0 and min(`most_s`, `first_s` * 2**k)."""

    first_s: float = 0.01
    most_s: float = 0.5

    def pauses(self) -> Iterator[float]:
        longest = self.first_s
        while True:
            yield random.uniform(0, longest)
            longest = min(self.most_s, longest * 2)


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a store is, as it says itself in store.json."""

    store_id: str
    book: str
    shards: int
    created: str

    @classmethod
    def read(cls, store: ObjectStore) -> "Metadata":
        """Raises ObjectMissing, Damaged, StoreMismatch for a format that this version does not know and for a store
        whose restore has not ended."""
        data = store.get(METADATA_NAME)
        try:
            body = loads(data)
            form = body["format"]
            found = cls(**{key: body[key] for key in ("store_id", "book", "shards", "created")})
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(METADATA_NAME, f"it does not describe a store ({type(error).__name__})") from error
        if form == RESTORING:
            raise StoreMismatch(f"{store.description} is being restored; if that was cut off, empty it and begin anew")
        if form != FORMAT:
            raise StoreMismatch(f"{store.description} has the format {form!r}; this version knows {FORMAT}")
        return found

    def encode(self, form: str | int = FORMAT) -> bytes:
        """The object."""
        return dumps({"format": form, **vars(self)}, indent=1).encode()


class StoreIdentity:
    """Whether the store is still the one that was opened. Safe to share between threads.

    Somebody may wipe a store and restore a backup in its place under a running server. Its entries have the same names,
    and a server that went on would put its own among them.
    """

    def __init__(self, store: ObjectStore, store_id: str) -> None:
        self._store = store
        self._store_id = store_id
        self._lock = Lock()
        self._checked_at = time.monotonic()
        self._replaced = ""
        self._told: list[Callable[[], None]] = []

    @property
    def replaced(self) -> bool:
        """Whether another store was found; this never ends."""
        return bool(self._replaced)

    def when_replaced(self, tell: Callable[[], None]) -> None:
        """Let `tell` be called, by any thread, once another store is found."""
        with self._lock:
            self._told.append(tell)
            if self._replaced:
                tell()

    def check(self) -> None:
        """Ask the store, unless that was done within half a second. Raises StoreReplaced, and what a get raises."""
        with self._lock:
            began = time.monotonic()
            if not self._replaced and began - self._checked_at >= IDENTITY_FRESH_S:
                self._replaced = self._difference()
                self._checked_at = began
                if self._replaced:
                    _logger.error("store replaced", why=self._replaced)
                    for tell in self._told:
                        tell()
            if self._replaced:
                raise StoreReplaced(f"{self._replaced} since this server opened it: start the server again")

    def _difference(self) -> str:
        try:
            found = Metadata.read(self._store).store_id
        except (ObjectMissing, StoreMismatch) as error:
            return f"the store was replaced ({error.message})"
        except Damaged as error:
            _logger.error("store not described", error=error.message)  # no sign of another store
            return ""
        return "" if found == self._store_id else f"the store was replaced by another one ({found})"


class StoreClock:
    """Whether this machine's clock is near enough the store's to write. Safe to share between threads."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = Lock()
        self._checked_at = float("-inf")
        self._offset = 0.0

    def check(self) -> None:
        """Ask the store, unless that was done lately and this clock was not set since. Raises ClockSkew."""
        with self._lock:
            offset = time.time() - time.monotonic()
            if time.monotonic() - self._checked_at < _SKEW_CHECK_EVERY_S and abs(offset - self._offset) < 0.5:
                return
            before = time.time()
            stores = self._store.now().timestamp()
            after = time.time()
            # The store's clock was somewhere in the second that begins at `stores`, at some moment in between.
            skew = max(stores - after, before - (stores + 1), 0.0)
            if skew > MAX_SKEW_S:
                raise ClockSkew(
                    f"this machine's clock is {skew:.1f} s off the store's; set it (NTP) before writing",
                    skew_s=f"{skew:.1f}",
                )
            self._checked_at = time.monotonic()
            self._offset = offset


class Log:
    """Reads and settles entries. All methods block; one thread a shard may settle, any may read."""

    def __init__(self, store: ObjectStore, store_id: str, shards: int, backoff: Backoff) -> None:
        self.store = store
        self.store_id = store_id
        self.shards = shards
        self.clock = StoreClock(store)
        self.identity = StoreIdentity(store, store_id)
        self._backoff = backoff

    @classmethod
    def open(cls, store: ObjectStore, *, book: str, shards: int, backoff: Backoff | None = None) -> "Log":
        """Open the log of `book` in `store`, made if the store has none.

        Raises StoreMismatch if the store was made for another book, shard count or format; Damaged; StoreUnavailable.
        """
        try:
            found = Metadata.read(store)
        except ObjectMissing:
            _create_metadata(store, book, shards)
            found = Metadata.read(store)
        if (found.book, found.shards) != (book, shards):
            raise StoreMismatch(
                f"{store.description} was made for the {found.book} with {found.shards} shards, and the {book} with "
                f"{shards} was asked for"
            )
        return cls(store, found.store_id, shards, backoff or Backoff())

    def read(self, shard: int, number: int) -> Entry | None:
        """Entry `number`, or None where the log has not come so far. Raises Damaged, StoreUnavailable."""
        try:
            data = self.store.get(entry_name(shard, number))
        except ObjectMissing:
            return None
        return decode(data, store_id=self.store_id, shard=shard, number=number)

    def check_end(self, shard: int, last: int) -> None:
        """Raises Damaged when entry `last` + 1 is missing while later ones exist: somebody has deleted from the log."""
        later = self.store.list(f"log/{shard}/", start_after=entry_name(shard, last), limit=1)
        if later and self.read(shard, last + 1) is None:
            raise Damaged(entry_name(shard, last + 1), f"it is missing, and {later[0].name!r} exists")

    def settle(self, entry: Entry, stop: Event) -> Entry:
        """Put `entry` until its number is taken, and return the entry that has it: this one or another writer's.

        Returns only when the number is settled, however long the store does not answer, so that nothing else is put to
        the shard while this may still land. Raises StoreRefused, ClockSkew when the first try was refused for certain,
        OutcomeUnknown once `stop` is set, and StoreReplaced when the store that it was put to is no more.
        """
        name, data = entry_name(entry.shard, entry.number), encode(entry)
        in_doubt = False
        for pause in self._backoff.pauses():
            try:
                self.identity.check()
                self.store.put_if_absent(name, data)
                return entry
            except ObjectExists:
                # Taken: by an earlier try of this very put, perhaps.
                return self._winner(entry, stop)
            except StoreReplaced:
                raise
            except StoreUnavailable as error:
                in_doubt = True
                _logger.warning("entry in doubt", object=name, error=error.message)
            except StorageError as error:
                if not in_doubt:
                    raise
                # This try was refused; an earlier one may still land.
                _logger.warning("entry in doubt", object=name, error=error.message)
            if stop.wait(pause):
                raise OutcomeUnknown(f"stopped while {name!r} was in doubt", object=name)
        raise AssertionError("pauses never end")

    def _winner(self, entry: Entry, stop: Event) -> Entry:
        for pause in self._backoff.pauses():
            try:
                winner = self.read(entry.shard, entry.number)
                if winner is not None:
                    return winner
                self.identity.check()
                _logger.error("an entry that exists is not found", shard=entry.shard, number=entry.number)
            except (StoreUnavailable, StoreRefused) as error:
                _logger.warning("winner not read", shard=entry.shard, number=entry.number, error=error.message)
            if stop.wait(pause):
                break
        raise OutcomeUnknown(
            "stopped before it was known whose entry won", object=entry_name(entry.shard, entry.number)
        )


def new_write_id() -> str:
    return secrets.token_hex(12)


def now_us() -> int:
    return time.time_ns() // 1000


def new_metadata(book: str, shards: int) -> Metadata:
    """Of a store that is made now."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Metadata(store_id=secrets.token_hex(10), book=book, shards=shards, created=created)


def _create_metadata(store: ObjectStore, book: str, shards: int) -> None:
    # Another process may have been first, or this one without hearing of it: what is there counts.
    with suppress(ObjectExists, StoreUnavailable):
        store.put_if_absent(METADATA_NAME, new_metadata(book, shards).encode())
