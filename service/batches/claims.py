"""Claims: which of several servers on one store draws a shard of a batch.

    claims/<shard>/<n>    empty; its modification time is its server's last renewal

A claim is created only if it is absent. Of several servers that find no claim, or the same expired one, one wins. A
claim is a hint and not a lock: servers that draw the same shard do no harm (`Output`), they only waste time.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from pseudoword.names import BatchName

from rpc.watchers import wait_for
from service.batches.output import folder
from storage.errors import ObjectExists, StorageError
from storage.objects.base import ObjectStore, list_all

_CLAIM = re.compile(r"([0-9]{6})/([0-9]{6})")
_RENEWALS = 3  # within a lease


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claimed shard, and the name of the claim's object."""

    shard: int
    name: str


class Claims:
    """The claims of one batch. A claim expires if it was not renewed for `lease`, on the store's clock."""

    def __init__(self, store: ObjectStore, batch: BatchName, lease: timedelta) -> None:
        self._store = store
        self._folder = f"{folder(batch)}/claims/"
        self._lease = lease

    def take(self, shards: Sequence[int]) -> Claim | None:
        """Claims the first of `shards` without an unexpired claim; None if there is none. Blocks. Raises the store's
        errors."""
        newest = {}
        for info in list_all(self._store, self._folder):
            if claim_name := _CLAIM.fullmatch(info.name.removeprefix(self._folder)):
                newest[int(claim_name[1])] = (int(claim_name[2]), info.modified)
        now = self._store.now()
        for shard in shards:
            number = 0
            if shard in newest:
                last, renewed = newest[shard]
                if now - renewed <= self._lease:
                    continue
                number = last + 1
            claim = Claim(shard=shard, name=f"{self._folder}{shard:06}/{number:06}")
            with suppress(ObjectExists):
                self._store.put_if_absent(claim.name, b"")
                return claim
        return None

    @asynccontextmanager
    async def held(self, claim: Claim) -> AsyncIterator[None]:
        """Renews a claim within the context, and deletes it at the end."""
        done = asyncio.Event()
        renewing = asyncio.create_task(self._renew(claim, done))
        try:
            yield
        finally:
            done.set()
            await renewing  # not cancelled: a renewal in progress would create the claim again
            with suppress(StorageError):
                await asyncio.to_thread(self._store.delete, claim.name)

    async def _renew(self, claim: Claim, done: asyncio.Event) -> None:
        while not done.is_set():
            await wait_for(done, self._lease.total_seconds() / _RENEWALS)
            if not done.is_set():
                with suppress(StorageError):  # the next renewal may succeed
                    await asyncio.to_thread(self._store.put, claim.name, b"")
