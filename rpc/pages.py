"""Page tokens: where a list goes on, which moment it shows, and of which request it is."""

import base64
import binascii
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from google.protobuf.message import Message

from rpc.errors import InvalidArgument, OutOfRange
from rpc.validate import Violations
from storage.errors import BadRevision
from storage.ledger.entry import Revision

R = TypeVar("R")
M = TypeVar("M", bound=Message)

DEFAULT_SIZE = 50
MAX_SIZE = 1_000
# Of all items of a page together: far below what a client takes in one message.
MAX_PAGE_BYTES = 4 * 2**20
_LIFETIME_S = 3600
_VERSION = 1


def page_size(found: Violations, request: Any) -> int:
    """How many items to give."""
    if request.page_size < 0:
        found.add("page_size", "must not be negative")
    return min(request.page_size or DEFAULT_SIZE, MAX_SIZE)


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """After which item (`key`) the next page begins, and what its first page showed (`revision`, None: nothing fixed).

    `issued` is when the first page was made, seconds since 1970 UTC.
    """

    key: Sequence[Any]
    revision: Revision | None
    issued: float
    request: str

    @classmethod
    def read(cls, request: Any, kinds: Sequence[type]) -> Self | None:
        """The cursor of a request; None for a first page. `kinds` are the types of its key.

        Raises InvalidArgument (PAGE_TOKEN_INVALID) for a token that is none, or another request's, and OutOfRange
        (PAGE_TOKEN_EXPIRED) for one that is too old.
        """
        token = request.page_token
        if not token:
            return None
        try:
            fields = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
            version, key, revision, issued, digest = fields
            cursor = cls(
                key=key,
                revision=Revision.parse(revision) if revision else None,
                issued=float(issued),
                request=str(digest),
            )
            whole = version == _VERSION and [type(item) for item in key] == list(kinds) and all(map(_usable, key))
        except (ValueError, TypeError, RecursionError, BadRevision, binascii.Error):
            whole = False
        if not whole:
            raise _invalid("it is no token of this list")
        if cursor.request != request_digest(request):
            raise _invalid("it is the token of another request: send everything but page_size as before")
        if time.time() - cursor.issued > _LIFETIME_S:
            raise OutOfRange("this list's page is older than an hour: list again", reason="PAGE_TOKEN_EXPIRED")
        return cursor

    @classmethod
    def after(cls, key: Sequence[Any], request: Any, cursor: Self | None, revision: Revision | None = None) -> Self:
        """The cursor of the page that follows `key`'s item; `cursor` is that of this page, None for a first one."""
        issued = time.time() if cursor is None else cursor.issued
        return cls(key=key, revision=revision, issued=issued, request=request_digest(request))

    def token(self) -> str:
        """What the client hands back."""
        revision = str(self.revision) if self.revision is not None else ""
        fields = [_VERSION, list(self.key), revision, self.issued, self.request]
        return base64.urlsafe_b64encode(json.dumps(fields, separators=(",", ":")).encode()).decode().rstrip("=")


def request_digest(request: Message) -> str:
    """What must be the same for all pages of a list."""
    rest = type(request)()
    rest.CopyFrom(request)
    for field in ("page_size", "page_token", "max_staleness"):
        if field in request.DESCRIPTOR.fields_by_name:
            rest.ClearField(field)
    name = request.DESCRIPTOR.full_name.encode()
    return hashlib.sha256(name + b"\0" + rest.SerializeToString(deterministic=True)).hexdigest()[:16]


def cut(
    rows: Sequence[R],
    messages: Sequence[M],
    key: Callable[[R], Sequence[Any]],
    request: Any,
    cursor: Cursor | None,
    revision: Revision | None = None,
) -> tuple[list[M], str]:
    """The page's items, and the token of the next page, empty at the end.

    `rows` are those of the page and one more where there is one; `messages` are of the page's rows alone, as many of
    which are given as fit MAX_PAGE_BYTES. `key` is where the next page goes on after a row; `cursor` is the page's own.
    """
    items = list(messages[: fitting(messages)])
    if len(items) == len(rows):
        return items, ""
    return items, Cursor.after(key(rows[len(items) - 1]), request, cursor, revision).token()


def creation_key(row: Mapping[str, Any]) -> Sequence[Any]:
    """The key of rows that are listed newest first."""
    return row["created_us"], row["name"]


def fitting(messages: Sequence[Message]) -> int:
    """How many of `messages`, at least one, make a page of at most MAX_PAGE_BYTES."""
    size = 0
    for count, message in enumerate(messages):
        size += message.ByteSize()
        if count and size > MAX_PAGE_BYTES:
            return count
    return len(messages)


def _usable(item: Any) -> bool:
    """A token can be anybody's work: only what the database can compare."""
    return item.isascii() if isinstance(item, str) else bool(0 <= item < 2**62)


def _invalid(why: str) -> InvalidArgument:
    return InvalidArgument(f"page_token: {why}", reason="PAGE_TOKEN_INVALID", violations=[("page_token", why)])
