"""Pages of lists. A page token holds the key after which the next page begins, the revision that the list shows, and a
digest of its request."""

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
# All items of a page together: far below the largest message that a client accepts.
MAX_PAGE_BYTES = 4 * 2**20
_LIFETIME_S = 3600
_VERSION = 1


def page_size(found: Violations, request: Any) -> int:
    """The number of items on the page. Adds a violation for a negative size."""
    if request.page_size < 0:
        found.add("page_size", "must not be negative")
    return min(request.page_size or DEFAULT_SIZE, MAX_SIZE)


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """The content of a page token. `key`: of the item after which the next page begins. `revision`: the one that the
    first page showed; None when the pages of the list are read without a fixed revision. `issued`: the time of the
    first page, seconds since 1970 UTC. `request`: a digest of the request.
    """

    key: Sequence[Any]
    revision: Revision | None
    issued: float
    request: str

    @classmethod
    def read(cls, request: Any, kinds: Sequence[type]) -> Self | None:
        """The cursor of a request; None for a first page. `kinds` are the types of the items of its key.

        Raises InvalidArgument (PAGE_TOKEN_INVALID) for a malformed token or one of another request, and OutOfRange
        (PAGE_TOKEN_EXPIRED) for a token that is too old.
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
            raise _invalid("it is not a token of this list: list again")
        if cursor.request != request_digest(request):
            raise _invalid("it belongs to another request: only page_size may differ between pages")
        if time.time() - cursor.issued > _LIFETIME_S:
            raise OutOfRange("the page token is older than an hour: list again", reason="PAGE_TOKEN_EXPIRED")
        return cursor

    @classmethod
    def after(cls, key: Sequence[Any], request: Any, cursor: Self | None, revision: Revision | None = None) -> Self:
        """The cursor of the page after the item `key`; `cursor` is the present page's, None for a first page."""
        issued = time.time() if cursor is None else cursor.issued
        return cls(key=key, revision=revision, issued=issued, request=request_digest(request))

    def token(self) -> str:
        """The page token: the cursor as text, which the client sends back."""
        revision = str(self.revision) if self.revision is not None else ""
        fields = [_VERSION, list(self.key), revision, self.issued, self.request]
        return base64.urlsafe_b64encode(json.dumps(fields, separators=(",", ":")).encode()).decode().rstrip("=")


def request_digest(request: Message) -> str:
    """Digest of the fields that must be equal for all pages of a list."""
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
    """The page's items, as many as fit MAX_PAGE_BYTES, and the token of the next page, empty at the end.

    `rows` are the rows of the page, plus one if there are more; `messages` are those of the page's rows only. `key`
    gives the key of a row; `cursor` is the page's own.
    """
    items = list(messages[: fitting(messages)])
    if len(items) == len(rows):
        return items, ""
    return items, Cursor.after(key(rows[len(items) - 1]), request, cursor, revision).token()


def creation_key(row: Mapping[str, Any]) -> Sequence[Any]:
    """The key of a row in a list that is sorted newest first."""
    return row["created_us"], row["name"]


def fitting(messages: Sequence[Message]) -> int:
    """The number of `messages`, at least one, that fit a page of MAX_PAGE_BYTES."""
    size = 0
    for count, message in enumerate(messages):
        size += message.ByteSize()
        if count and size > MAX_PAGE_BYTES:
            return count
    return len(messages)


def _usable(item: Any) -> bool:
    """Whether the database can compare `item`. A client can forge a token, so its key is not trusted."""
    return item.isascii() if isinstance(item, str) else bool(0 <= item < 2**62)


def _invalid(why: str) -> InvalidArgument:
    return InvalidArgument(f"page_token: {why}", reason="PAGE_TOKEN_INVALID", violations=[("page_token", why)])
