"""The batches as Generation's other parts use them: reading and moving rows of the ledger, and who watches one."""

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from pseudoword.names import BatchName

from rpc import commits
from rpc.patience import heard, patiently
from service.batches import book
from service.batches.book import SHARD, Command, MoveBatch, Row
from storage.entry import Revision
from storage.ledger import Ledger

_COMMIT_TIMEOUT = timedelta(seconds=30)
# Another server of the store may have made or ended a batch.
_LOOK_S = 2.0
_ACTOR = "generation"


class Desk:
    """One server's. Lives on its event loop."""

    def __init__(self, ledger: Ledger[Command]) -> None:
        self.ledger = ledger
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._work = asyncio.Event()

    async def commit(self, tenant: str, command: Command, request: Any, context: Any) -> Row:
        """A change that a client asks for. Raises what the book refuses with, and StorageErrors."""
        result = await commits.commit(self.ledger, SHARD, tenant, command, request, context, longest=_COMMIT_TIMEOUT)
        self._changed(command.name)
        return result.value

    async def move(self, move: MoveBatch) -> Row:
        """A change that the server itself makes, tried until the store takes it. Raises what the book refuses with,
        and Closed."""
        request_id = str(uuid.uuid4())

        async def once() -> Row:
            result = await self.ledger.commit(
                SHARD,
                move,
                request_id=request_id,
                tenant=BatchName.parse(move.name).tenant,
                digest=request_id,
                actor=_ACTOR,
                on_behalf_of=None,
                timeout_s=_COMMIT_TIMEOUT.total_seconds(),
            )
            return result.value

        row = await patiently(once)
        self._changed(move.name)
        return row

    async def row(self, name: str) -> Row:
        """A batch's row. Raises NotFound."""
        row, _ = await self.ledger.read(SHARD, lambda db: book.batch(db, name))
        return row

    async def active(self) -> list[Row]:
        """Rows of the batches that have not ended, oldest first."""
        rows, _ = await patiently(lambda: self.ledger.read(SHARD, book.active))
        return rows

    async def page(self, tenant: str, after: Any, limit: int, condition: Any) -> tuple[list[Row], Revision]:
        """As book.batches."""
        return await self.ledger.read(SHARD, lambda db: book.batches(db, tenant, after, limit, condition))

    @contextmanager
    def watching(self, name: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever there may be news of a batch; clear it before you look."""
        event = asyncio.Event()
        self._watchers.setdefault(name, set()).add(event)
        try:
            yield event
        finally:
            self._watchers[name].discard(event)
            if not self._watchers[name]:
                del self._watchers[name]

    def stir(self, name: str) -> None:
        """There is news of a batch."""
        for event in self._watchers.get(name, ()):
            event.set()

    async def work(self) -> None:
        """Returns when a batch may have been created or ended since this last returned, and every few seconds."""
        await heard(self._work, _LOOK_S)
        self._work.clear()

    def wake(self) -> None:
        """Whoever waits for work looks again."""
        self._work.set()

    def _changed(self, name: str) -> None:
        self._work.set()
        self.stir(name)
