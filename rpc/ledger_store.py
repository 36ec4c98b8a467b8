"""Base of each server's store: commits commands to a ledger, and reads rows from its views."""

import sqlite3
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Generic, TypeVar

from rpc import commits
from storage.ledger.entry import Revision
from storage.ledger.ledger import Ledger, shard_of
from storage.ledger.pending import Result

C = TypeVar("C")
T = TypeVar("T")


class LedgerStore(Generic[C]):
    """One server's ledger. Lives on the server's event loop."""

    def __init__(self, ledger: Ledger[C], *, actor: str, commit_timeout: timedelta) -> None:
        """`actor` is the actor's name in commits of the server itself."""
        self.ledger = ledger
        self._actor = actor
        self._commit_timeout = commit_timeout

    def shard(self, tenant: str) -> int:
        """The shard of a tenant."""
        return shard_of(tenant, self.ledger.shards)

    async def read(
        self, tenant: str, fn: Callable[[sqlite3.Connection], T], max_staleness: timedelta | None = None
    ) -> tuple[T, Revision]:
        """Run `fn` on a snapshot of the tenant's view; also returns the snapshot's revision. See Ledger.read."""
        return await self.ledger.read(self.shard(tenant), fn, max_staleness=max_staleness)

    async def _commit(self, tenant: str, command: C, request: Any, context: Any) -> Result:
        """Commit `command` for a client's `request`; see commits.commit."""
        shard = self.shard(tenant)
        return await commits.commit(self.ledger, shard, tenant, command, request, context, longest=self._commit_timeout)

    async def _commit_own(self, tenant: str, command: C) -> Result:
        """Commit a command of the server itself; retries until the store is available. Raises the state machine's
        errors, Closed and StoreReplaced."""
        shard = self.shard(tenant)
        return await commits.commit_own(
            self.ledger, shard, tenant, command, actor=self._actor, longest=self._commit_timeout
        )
