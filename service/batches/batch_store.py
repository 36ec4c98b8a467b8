"""The batches as Generation's other parts use them: reading and moving rows of the ledger, and who watches one."""

import asyncio
from datetime import timedelta
from typing import Any

from pseudoword.names import BatchName

from rpc import commits
from rpc.patience import Watchers, heard, patiently
from service.batches import state_machine as book
from service.batches.state_machine import SHARD, Command, MoveBatch, Row
from storage.ledger.entry import Revision
from storage.ledger.ledger import Ledger

_COMMIT_TIMEOUT = timedelta(seconds=30)
# Another server of the store may have made or ended a batch.
_LOOK_S = 2.0
_ACTOR = "generation"


class BatchStore:
    """One server's. Lives on its event loop."""

    def __init__(self, ledger: Ledger[Command]) -> None:
        self.ledger = ledger
        self.watchers = Watchers()
        self._work = asyncio.Event()

    async def commit(self, tenant: str, command: Command, request: Any, context: Any) -> Row:
        """A change that a client asks for. Raises what the book refuses with, and StorageErrors."""
        result = await commits.commit(self.ledger, SHARD, tenant, command, request, context, longest=_COMMIT_TIMEOUT)
        self._changed(command.name)
        return result.value

    async def move(self, move: MoveBatch) -> Row:
        """A change that the server itself makes, tried until the store takes it. Raises what the book refuses with,
        and Closed."""
        tenant = BatchName.parse(move.name).tenant
        result = await commits.commit_own(self.ledger, SHARD, tenant, move, actor=_ACTOR, longest=_COMMIT_TIMEOUT)
        self._changed(move.name)
        return result.value

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

    async def work(self) -> None:
        """Returns when a batch may have been created or ended since this last returned, and every few seconds."""
        await heard(self._work, _LOOK_S)
        self._work.clear()

    def wake(self) -> None:
        """Whoever waits for work looks again."""
        self._work.set()

    def _changed(self, name: str) -> None:
        self._work.set()
        self.watchers.stir(name)
