"""The object store as the rest of pseudoword sees it: names to bytes, with create-if-absent."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from storage.errors import InvalidName

_MAX_NAME_BYTES = 900
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+=-]{0,254}(/[A-Za-z0-9_][A-Za-z0-9._@+=-]{0,254})*")
_PREFIX = re.compile(r"|[A-Za-z0-9_][A-Za-z0-9._@+=/-]*")


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """`size` in bytes; `modified` by the store's clock, time zone UTC."""

    name: str
    size: int
    modified: datetime


class ObjectStore(Protocol):
    """Objects under names. All methods block, and may be called from several threads at once.

    What every store here promises: a get or a list that starts after a put has returned sees that put; an object is
    whole or absent, whatever was killed; of concurrent `put_if_absent` of one name exactly one succeeds.
    Not promised: that `a` and `a/b` can both exist.

    All methods raise StoreUnavailable (try again; a write may have landed), StoreRefused (nothing was written) and
    InvalidName.
    """

    @property
    def description(self) -> str:
        """Where this is, for logs; holds no secret."""
        ...

    def put_if_absent(self, name: str, data: bytes) -> None:
        """Create an object. Raises ObjectExists when the name is taken, which can be the work of this same call when
        an earlier one ended in StoreUnavailable. Never retries by itself."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Create or replace an object."""
        ...

    def get(self, name: str) -> bytes:
        """The object's bytes. Raises ObjectMissing."""
        ...

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer where the object ends. Raises ObjectMissing."""
        ...

    def stat(self, name: str) -> ObjectInfo:
        """Size and time. Raises ObjectMissing."""
        ...

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> Sequence[ObjectInfo]:
        """Up to `limit` objects whose names start with `prefix` and sort after `start_after`, in order of name."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object; no error when there is none."""
        ...

    def now(self) -> datetime:
        """The store's clock in UTC, cut off to at most one second's precision."""
        ...

    def close(self) -> None:
        """Give back connections. The store is of no use afterwards."""
        ...


def check_name(name: str) -> str:
    """Return `name` if every store can hold it; raises InvalidName.

    Segments of 1 to 255 of A-Z a-z 0-9 . _ @ + = -, none beginning with a dot or a sign, joined by slashes, at most 900
    bytes together (1,024 is the stores' limit; the rest is left to a bucket's prefix).
    """
    if len(name) > _MAX_NAME_BYTES or not _NAME.fullmatch(name):
        raise InvalidName(f"{name[:80]!r} is not an object name", object=name[:80])
    return name


def check_prefix(prefix: str) -> str:
    """Return `prefix` if it can begin an object's name, or is empty; raises InvalidName."""
    if len(prefix) > _MAX_NAME_BYTES or not _PREFIX.fullmatch(prefix) or "//" in prefix:
        raise InvalidName(f"{prefix[:80]!r} cannot begin an object name", object=prefix[:80])
    return prefix


def list_all(store: ObjectStore, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
    """All objects whose names start with `prefix` and sort after `start_after`, in order, read page by page."""
    while page := store.list(prefix, start_after=start_after):
        yield from page
        start_after = page[-1].name
