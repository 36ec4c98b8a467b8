"""The catalogue for the rpcs: commits commands, reads rows, pages lists, and stores blobs."""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

import grpc.aio
from google.protobuf.message import Message

from registry.catalogue.commands import Command
from registry.catalogue.versioned_rows import NOW, check_kept, place
from rpc.ledger_store import LedgerStore
from rpc.pages import Cursor, cut, page_size
from rpc.validate import Violations
from storage.errors import RevisionAhead, StorageError
from storage.ledger.entry import Revision
from storage.ledger.ledger import Ledger
from storage.ledger.pending import Result
from storage.objects.blobs import Blob, Blobs

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, kw_only=True)
class Page(Generic[M]):
    """A page of a list. `token` is empty at the end; all pages of the list show `revision`."""

    items: Sequence[M]
    token: str
    revision: Revision


class CatalogueStore(LedgerStore[Command]):
    """One registry's catalogue and blobs."""

    def __init__(self, ledger: Ledger[Command], blobs: Blobs, commit_timeout: timedelta) -> None:
        super().__init__(ledger, actor="registry", commit_timeout=commit_timeout)
        self._blobs = blobs

    async def commit(self, tenant: str, command: Command, request: Any, context: Context) -> Result:
        """Commit `command` for `request`. Raises the state machine's errors, and StorageErrors.

        Times out early enough before the caller's deadline that the error still reaches the caller.
        """
        return await self._commit(tenant, command, request, context)

    async def still_at(self, revisions: list[Revision], max_staleness: timedelta | None = None) -> bool:
        """Whether a read started now of each revision's shard would show the same revision; see Ledger.revision."""
        return [await self.ledger.revision(at.shard, max_staleness=max_staleness) for at in revisions] == revisions

    async def page(
        self,
        tenant: str,
        request: Any,
        fetch: Callable[[sqlite3.Connection, int, Any, int], Sequence[T]],
        *,
        message: Callable[[T, Revision], M],
        key: Callable[[T], Any],
        first: Any,
        exists: Callable[[sqlite3.Connection], Any] | None = None,
        max_staleness: timedelta | None = None,
    ) -> Page[M]:
        """The page of a List request.

        `fetch(db, at, after, limit)` gives rows as they were at the place `at`, those after the row whose `key` is
        `after` (`first` for the first page). All pages show the first page's revision. `exists` raises when the list's
        parent does not exist; it is called for the first page only. Raises InvalidArgument, OutOfRange, StoreChanged.
        """
        found = Violations()
        size = page_size(found, request)
        found.raise_if_any()
        cursor = Cursor.read(request, [type(first)])
        shown = None if cursor is None else cursor.revision
        if shown is not None:
            shown.check(self.ledger.store_id, self.shard(tenant))
        at = NOW if shown is None else min(place(shown), NOW)
        after = first if cursor is None else cursor.key[0]

        def work(db: sqlite3.Connection) -> Sequence[T]:
            check_kept(db, at)
            if cursor is None and exists is not None:
                exists(db)
            return fetch(db, at, after, size + 1)

        # A later page is read strongly: the first page may come from another replica, and this view may be behind it.
        rows, now = await self.read(tenant, work, max_staleness if cursor is None else None)
        if shown is not None and shown.place > now.place:
            raise RevisionAhead(f"revision {shown} is ahead of the log, which is at {now}", revision=str(shown))
        revision = shown or now
        messages = [message(row, revision) for row in rows[:size]]
        items, token = cut(rows, messages, lambda row: [key(row)], request, cursor, revision)
        return Page(items=items, token=token, revision=revision)

    async def put_blob(self, tenant: str, data: bytes) -> Blob:
        """Write a blob. Raises StorageErrors."""
        self.ledger.refuse_replaced()
        return await asyncio.to_thread(self._blobs.put, tenant, data)

    async def drop_blob(self, blob: Blob) -> None:
        """Delete a blob that certainly no entry names. If that fails, garbage collection deletes it later."""
        with suppress(StorageError):
            await asyncio.to_thread(self._blobs.delete, blob)

    async def get_blob(self, name: str) -> bytes:
        """A blob's bytes, verified. Raises Damaged, ObjectMissing and other StorageErrors."""
        return await asyncio.to_thread(self._blobs.get, name)
