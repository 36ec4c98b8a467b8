"""The interface of an object store: names to bytes, with create-if-absent."""

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

    Every store guarantees: a get or a list that starts after a put has returned sees that put; an object is complete or
    absent, even when a process is killed; of concurrent `put_if_absent` calls for one name exactly one succeeds.
    Not guaranteed: that `a` and `a/b` can both exist.

    All methods raise StoreUnavailable (retry; a write may have taken effect), StoreRefused (nothing was written) and
    InvalidName.
    """

    @property
    def description(self) -> str:
        """The store's location, for logs; contains no secret."""
        ...

    def put_if_absent(self, name: str, data: bytes) -> None:
        """Create an object. Raises ObjectExists when the name is taken. After a StoreUnavailable, the object may have
        been created by that earlier attempt. Never retries by itself."""
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
        """Size and modification time. Raises ObjectMissing."""
        ...

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> Sequence[ObjectInfo]:
        """Up to `limit` objects whose names start with `prefix` and sort after `start_after`, sorted by name."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object; no error when it does not exist."""
        ...

    def now(self) -> datetime:
        """The store's clock in UTC; it may be truncated to the second."""
        ...

    def close(self) -> None:
        """Close all connections. No method may be called afterwards."""
        ...


def check_name(name: str) -> str:
    """Return `name` if every store can hold it. Raises InvalidName.

    A name is segments of 1 to 255 characters of A-Z a-z 0-9 . _ @ + = -, joined by slashes; no segment begins with a
    dot or a sign. At most 900 bytes in all (S3's limit is 1,024; the rest is left for a prefix in the bucket).
    """
    if len(name) > _MAX_NAME_BYTES or not _NAME.fullmatch(name):
        raise InvalidName(f"{name[:80]!r} is not an object name", object=name[:80])
    return name


def check_prefix(prefix: str) -> str:
    """Return `prefix` if it is empty or can begin an object's name. Raises InvalidName."""
    if len(prefix) > _MAX_NAME_BYTES or not _PREFIX.fullmatch(prefix) or "//" in prefix:
        raise InvalidName(f"{prefix[:80]!r} cannot begin an object name", object=prefix[:80])
    return prefix


def list_all(store: ObjectStore, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
    """All objects whose names start with `prefix` and sort after `start_after`, sorted by name, read page by page."""
    while page := store.list(prefix, start_after=start_after):
        yield from page
        start_after = page[-1].name
