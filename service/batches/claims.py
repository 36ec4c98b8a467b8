"""Which server draws a shard of a batch, where several share a store.

    claims/<shard>/<n>    empty; as young as its server last said that it goes on

A claim is created only if it is absent, so of servers that find none, or the same one left behind, one wins. It is a
hint and no lock: servers that draw the same shard after all do each other no harm (`Output`), and waste time only.
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
_RENEWALS = 3  # in the time after which a claim is over


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What was claimed, and the object that says so."""

    shard: int
    name: str


class Claims:
    """Those of one batch. A claim that was not renewed for `lease`, by the store's clock, is over."""

    def __init__(self, store: ObjectStore, batch: BatchName, lease: timedelta) -> None:
        self._store = store
        self._folder = f"{folder(batch)}/claims/"
        self._lease = lease

    def take(self, shards: Sequence[int]) -> Claim | None:
        """Claims the first of `shards` that nobody has claimed; None where there is none. Blocks. Raises what the store
        raises."""
        newest = {}
        for info in list_all(self._store, self._folder):
            if found := _CLAIM.fullmatch(info.name.removeprefix(self._folder)):
                newest[int(found[1])] = (int(found[2]), info.modified)
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
        """Renews a claim, and gives it back in the end."""
        done = asyncio.Event()
        renewing = asyncio.create_task(self._renew(claim, done))
        try:
            yield
        finally:
            done.set()
            await renewing  # not cancelled: a renewal on its way would make the claim anew
            with suppress(StorageError):
                await asyncio.to_thread(self._store.delete, claim.name)

    async def _renew(self, claim: Claim, done: asyncio.Event) -> None:
        while not done.is_set():
            await wait_for(done, self._lease.total_seconds() / _RENEWALS)
            if not done.is_set():
                with suppress(StorageError):  # the next one may reach it
                    await asyncio.to_thread(self._store.put, claim.name, b"")
