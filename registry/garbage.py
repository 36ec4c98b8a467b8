"""Garbage collection of a registry: a blob that no version needs is first condemned in the log, and deleted by a later
run.

A blob without an entry may belong to a publisher that is suspended between its upload and its commit. Once the blob is
condemned, that commit is refused and the publisher uploads again. Therefore no blob that an entry names is ever
deleted, even if a publisher is suspended for arbitrarily long.
"""

import asyncio
import sqlite3
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby

from registry.catalogue import content
from registry.catalogue.commands import Command, CondemnBlobs
from rpc.errors import FailedPrecondition
from storage.garbage import Collection, is_over, leftovers
from storage.ledger.ledger import Ledger, shard_of
from storage.objects.base import ObjectInfo, ObjectStore
from storage.objects.blobs import tenant_of

GRACE = timedelta(hours=24)
_PAGE = 1000
# The names of this many blobs fit one entry with room to spare.
_MAX_BLOBS_PER_ENTRY = 200
_COMMIT_S = 60.0


class Collector:
    """One run over a registry's store. Replicas, publishers and other collectors may run at the same time."""

    def __init__(self, ledger: Ledger[Command], store: ObjectStore, *, grace: timedelta, dry_run: bool) -> None:
        """`grace`, by the store's clock: the age at which an unneeded upload is condemned, and the time from then until
        it is deleted."""
        self._ledger = ledger
        self._store = store
        self._grace = grace
        self._dry_run = dry_run
        self._done = Collection()

    async def run(self) -> Collection:
        """Process every blob once. Raises StorageErrors; deletions made before the error remain."""
        now = await asyncio.to_thread(self._store.now)
        last = ""
        while page := await asyncio.to_thread(self._store.list, "t/", start_after=last, limit=_PAGE):
            last = page[-1].name
            for tenant, infos in groupby(page, key=lambda info: tenant_of(info.name)):
                if tenant is not None:
                    await self._tenant(tenant, list(infos), now)
        for info in await asyncio.to_thread(lambda: list(leftovers(self._store, self._ledger.shards))):
            if is_over(info.modified, now, self._grace):
                await self._delete(info)
        return self._done

    async def _tenant(self, tenant: str, infos: Sequence[ObjectInfo], now: datetime) -> None:
        def work(db: sqlite3.Connection) -> list[tuple[bool, int | None]]:
            return [(content.in_use(db, info.name), content.condemned_us(db, info.name)) for info in infos]

        done = self._done
        states, _ = await self._ledger.read(shard_of(tenant, self._ledger.shards), work)
        condemn: list[str] = []
        for info, (in_use, condemned_us) in zip(infos, states, strict=True):
            done.seen += 1
            if in_use:
                done.in_use += 1
            elif condemned_us is not None:
                if is_over(datetime.fromtimestamp(condemned_us / 1_000_000, UTC), now, self._grace):
                    await self._delete(info)
                else:
                    done.waiting += 1
            elif is_over(info.modified, now, self._grace):
                condemn.append(info.name)
            else:
                done.waiting += 1
        for start in range(0, len(condemn), _MAX_BLOBS_PER_ENTRY):
            await self._condemn(tenant, condemn[start : start + _MAX_BLOBS_PER_ENTRY])

    async def _condemn(self, tenant: str, names: list[str]) -> None:
        while names and not self._dry_run:
            try:
                await self._ledger.commit(
                    shard_of(tenant, self._ledger.shards),
                    CondemnBlobs(peer="", tenant=tenant, blobs=tuple(names)),
                    request_id=str(uuid.uuid4()),
                    tenant=tenant,
                    digest="",
                    actor="collector",
                    on_behalf_of=None,
                    timeout_s=_COMMIT_S,
                )
                break
            except FailedPrecondition as refusal:
                # A version was published with this blob since the view was read.
                names.remove(refusal.metadata["blob"])
                self._done.in_use += 1
        self._done.condemned += names

    async def _delete(self, info: ObjectInfo) -> None:
        if not self._dry_run:
            await asyncio.to_thread(self._store.delete, info.name)
        self._done.deleted.append(info.name)
        self._done.bytes += info.size
