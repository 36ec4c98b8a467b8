"""Reads the rows of batches, and commits the commands that change them."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from pseudoword.names import BatchName

from rpc.ledger_store import LedgerStore
from rpc.retry import retry_while_unavailable
from rpc.watchers import Watchers, wait_for
from service.batches import state_machine
from service.batches.state_machine import SHARD, Command, MoveBatch, Row
from storage.ledger.ledger import Ledger
from storage.sql import Condition

_COMMIT_TIMEOUT = timedelta(seconds=30)
# Other servers of the store may create and end batches without notifying this one.
_POLL_INTERVAL_S = 2.0


class BatchStore(LedgerStore[Command]):
    """One server's access to the batches."""

    def __init__(self, ledger: Ledger[Command]) -> None:
        super().__init__(ledger, actor="generation", commit_timeout=_COMMIT_TIMEOUT)
        self.watchers = Watchers()
        self._work = asyncio.Event()

    async def commit(self, tenant: str, command: Command, request: Any, context: Any) -> Row:
        """Commits a client's command. Raises the state machine's refusals, and StorageErrors."""
        result = await self._commit(tenant, command, request, context)
        self._changed(command.name)
        return result.value

    async def move(self, move: MoveBatch) -> Row:
        """Commits a change of state that the server itself makes, and retries until the store accepts it. Raises the
        state machine's refusals, and Closed."""
        result = await self._commit_own(BatchName.parse(move.name).tenant, move)
        self._changed(move.name)
        return result.value

    async def row(self, name: str) -> Row:
        """A batch's row. Raises NotFound."""
        row, _ = await self.ledger.read(SHARD, lambda db: state_machine.batch(db, name))
        return row

    async def active(self) -> list[Row]:
        """Rows of the batches that have not ended, oldest first."""
        rows, _ = await retry_while_unavailable(lambda: self.ledger.read(SHARD, state_machine.active))
        return rows

    async def page(self, tenant: str, after: Sequence[Any] | None, limit: int, condition: Condition) -> list[Row]:
        """As state_machine.batches."""
        rows, _ = await self.ledger.read(SHARD, lambda db: state_machine.batches(db, tenant, after, limit, condition))
        return rows

    async def wait_for_work(self) -> None:
        """Returns when a batch may have been created or ended since the last call, at the latest after
        _POLL_INTERVAL_S."""
        await wait_for(self._work, _POLL_INTERVAL_S)
        self._work.clear()

    def wake(self) -> None:
        """Makes `wait_for_work` return."""
        self._work.set()

    def _changed(self, name: str) -> None:
        self._work.set()
        self.watchers.notify(name)
