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
# Replaces the format number in store.json until a restore has finished.
RESTORING = "restoring"
MAX_SKEW_S = 2.0
_SKEW_CHECK_EVERY_S = 60.0
# A check of the store's identity is valid for this long.
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
    """The content of store.json: the store's id, its state machine (`book`), shard count and time of creation."""

    store_id: str
    book: str
    shards: int
    created: str

    @classmethod
    def read(cls, store: ObjectStore) -> "Metadata":
        """Raises ObjectMissing, Damaged, and StoreMismatch for an unsupported format or a store whose restore has not
        finished."""
        data = store.get(METADATA_NAME)
        try:
            body = loads(data)
            form = body["format"]
            found = cls(**{key: body[key] for key in ("store_id", "book", "shards", "created")})
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(METADATA_NAME, f"it does not describe a store ({type(error).__name__})") from error
        if form == RESTORING:
            raise StoreMismatch(
                f"{store.description} is being restored; if the restore was interrupted, empty the store and repeat it"
            )
        if form != FORMAT:
            raise StoreMismatch(f"{store.description} has the format {form!r}; this version supports {FORMAT}")
        return found

    def encode(self, form: str | int = FORMAT) -> bytes:
        """The content of store.json."""
        return dumps({"format": form, **vars(self)}, indent=1).encode()


class StoreIdentity:
    """Checks that the store is still the one that was opened. Safe to share between threads.

    An operator may wipe a store and restore a backup in its place while a server runs. The restored entries have the
    same names, so a server that continued would put its own entries among them.
    """

    def __init__(self, store: ObjectStore, store_id: str) -> None:
        self._store = store
        self._store_id = store_id
        self._lock = Lock()
        self._checked_at = time.monotonic()
        self._replaced = ""
        self._callbacks: list[Callable[[], None]] = []

    @property
    def replaced(self) -> bool:
        """Whether another store was found. Once true, it stays true."""
        return bool(self._replaced)

    def when_replaced(self, notify: Callable[[], None]) -> None:
        """Register `notify`, to be called from any thread when another store is found."""
        with self._lock:
            self._callbacks.append(notify)
            if self._replaced:
                notify()

    def check(self) -> None:
        """Read store.json, unless the last check is recent. Raises StoreReplaced, and the errors of a get."""
        with self._lock:
            began = time.monotonic()
            if not self._replaced and began - self._checked_at >= IDENTITY_FRESH_S:
                self._replaced = self._difference()
                self._checked_at = began
                if self._replaced:
                    _logger.error("store replaced", why=self._replaced)
                    for notify in self._callbacks:
                        notify()
            if self._replaced:
                raise StoreReplaced(f"{self._replaced} since this server opened it: restart the server")

    def _difference(self) -> str:
        try:
            found = Metadata.read(self._store).store_id
        except (ObjectMissing, StoreMismatch) as error:
            return f"the store was replaced ({error.message})"
        except Damaged as error:
            _logger.error("store.json unreadable", error=error.message)  # not evidence of another store
            return ""
        return "" if found == self._store_id else f"the store was replaced by another one ({found})"


class StoreClock:
    """Checks that this machine's clock is close enough to the store's to write. Safe to share between threads."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = Lock()
        self._checked_at = float("-inf")
        self._offset = 0.0

    def check(self) -> None:
        """Compare the clocks, unless the last check is recent and this clock has not been set since. Raises
        ClockSkew."""
        with self._lock:
            offset = time.time() - time.monotonic()
            if time.monotonic() - self._checked_at < _SKEW_CHECK_EVERY_S and abs(offset - self._offset) < 0.5:
                return
            before = time.time()
            stores = self._store.now().timestamp()
            after = time.time()
            # At some moment between `before` and `after`, the store's clock was within the second that begins at
            # `stores`.
            skew = max(stores - after, before - (stores + 1), 0.0)
            if skew > MAX_SKEW_S:
                raise ClockSkew(
                    f"this machine's clock differs from the store's by {skew:.1f} s; set it (NTP) and try again",
                    skew_s=f"{skew:.1f}",
                )
            self._checked_at = time.monotonic()
            self._offset = offset


class Log:
    """Reads and settles entries. All methods block. One thread per shard may settle; any thread may read."""

    def __init__(self, store: ObjectStore, store_id: str, shards: int, backoff: Backoff) -> None:
        self.store = store
        self.store_id = store_id
        self.shards = shards
        self.clock = StoreClock(store)
        self.identity = StoreIdentity(store, store_id)
        self._backoff = backoff

    @classmethod
    def open(cls, store: ObjectStore, *, book: str, shards: int, backoff: Backoff | None = None) -> "Log":
        """Open the log of the state machine named `book` in `store`, and create it if the store has none.

        Raises StoreMismatch if the store was made for another state machine, shard count or format; Damaged;
        StoreUnavailable.
        """
        try:
            found = Metadata.read(store)
        except ObjectMissing:
            _create_metadata(store, book, shards)
            found = Metadata.read(store)
        if (found.book, found.shards) != (book, shards):
            raise StoreMismatch(
                f"{store.description} was made for the {found.book} with {found.shards} shards, not for the {book} "
                f"with {shards}; give another store address"
            )
        return cls(store, found.store_id, shards, backoff or Backoff())

    def read(self, shard: int, number: int) -> Entry | None:
        """Entry `number`, or None when it does not exist yet. Raises Damaged, StoreUnavailable."""
        try:
            data = self.store.get(entry_name(shard, number))
        except ObjectMissing:
            return None
        return decode(data, store_id=self.store_id, shard=shard, number=number)

    def check_end(self, shard: int, last: int) -> None:
        """Raises Damaged when entry `last` + 1 is missing and later entries exist: an entry of the log was deleted."""
        later = self.store.list(f"log/{shard}/", start_after=entry_name(shard, last), limit=1)
        if later and self.read(shard, last + 1) is None:
            raise Damaged(entry_name(shard, last + 1), f"it is missing, and the later {later[0].name!r} exists")

    def settle(self, entry: Entry, stop: Event) -> Entry:
        """Put `entry` until its number is taken. Returns the entry with that number: this one or another writer's.

        Returns only when the number is settled, however long the store takes to answer: nothing else may be put to the
        shard while this put may still take effect. Raises StoreRefused and ClockSkew when the first attempt certainly
        failed, OutcomeUnknown once `stop` is set, and StoreReplaced when the store was replaced.
        """
        name, data = entry_name(entry.shard, entry.number), encode(entry)
        in_doubt = False
        for pause in self._backoff.pauses():
            try:
                self.identity.check()
                self.store.put_if_absent(name, data)
                return entry
            except ObjectExists:
                # The number is taken, perhaps by an earlier attempt of this put.
                return self._winner(entry, stop)
            except StoreReplaced:
                raise
            except StoreUnavailable as error:
                in_doubt = True
                _logger.warning("entry in doubt", object=name, error=error.message)
            except StorageError as error:
                if not in_doubt:
                    raise
                # This attempt was refused; an earlier one may still take effect.
                _logger.warning("entry in doubt", object=name, error=error.message)
            if stop.wait(pause):
                raise OutcomeUnknown(f"the server stopped while the entry {name!r} was in doubt", object=name)
        raise AssertionError("pauses never end")

    def _winner(self, entry: Entry, stop: Event) -> Entry:
        for pause in self._backoff.pauses():
            try:
                winner = self.read(entry.shard, entry.number)
                if winner is not None:
                    return winner
                self.identity.check()
                _logger.error("existing entry not found", shard=entry.shard, number=entry.number)
            except (StoreUnavailable, StoreRefused) as error:
                _logger.warning("winner not read", shard=entry.shard, number=entry.number, error=error.message)
            if stop.wait(pause):
                break
        raise OutcomeUnknown(
            "the server stopped before it could read which entry won", object=entry_name(entry.shard, entry.number)
        )


def new_write_id() -> str:
    return secrets.token_hex(12)


def now_us() -> int:
    return time.time_ns() // 1000


def new_metadata(book: str, shards: int) -> Metadata:
    """The metadata of a new store, created now."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Metadata(store_id=secrets.token_hex(10), book=book, shards=shards, created=created)


def _create_metadata(store: ObjectStore, book: str, shards: int) -> None:
    # Another process may have created it first, or this put may succeed without a response. The stored metadata counts.
    with suppress(ObjectExists, StoreUnavailable):
        store.put_if_absent(METADATA_NAME, new_metadata(book, shards).encode())
