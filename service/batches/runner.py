"""Draws the batches: a shard at a time, fair between tenants, behind everybody else, into the store.

It keeps nothing that matters: what is to be drawn is in the log, and what is drawn is in the store. So a server that is
killed, or joins others on the same store, takes up what is missing and what no other one has claimed.
"""

import asyncio
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from pseudoword.generation.v1 import resources_pb2
from pseudoword.names import BatchName, VersionName

from diffusion.spec import ModelSpec
from rpc.errors import Error, ErrorTable, FailedPrecondition, ResourceExhausted, error_text
from rpc.identity import Principal, from_json
from rpc.retry import retry_while_unavailable
from service.batches.batch_store import BatchStore
from service.batches.claims import Claim, Claims
from service.batches.life_cycle import Move
from service.batches.output import Output, finished
from service.batches.plan import Item
from service.batches.state_machine import MoveBatch, Row
from service.batches.validation import Order, order
from service.engine.engine import Engine
from service.request.image_file import ENDINGS, to_file
from service.request.mailbox import Drawn
from service.request.params import FORMATS, validate
from service.request.prepare import RequestPreparer
from service.settings import GenerationSettings
from storage.errors import StorageError
from storage.objects.base import ObjectStore
from storage.objects.blobs import Blobs

_SHARDS_AT_ONCE = 2  # so that there is something to draw while the other one is packed
_PAUSE_S = 2.0  # before a batch that has failed for a reason that passes is tried again

_logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A batch as it is drawn."""

    name: BatchName
    order: Order
    output: Output
    principal: Principal
    versions: dict[str, VersionName]


class Runner:
    """One server's. Lives on its event loop."""

    def __init__(
        self,
        batch_store: BatchStore,
        store: ObjectStore,
        spec: ModelSpec,
        preparer: RequestPreparer,
        engine: Engine,
        settings: GenerationSettings,
        table: ErrorTable,
    ) -> None:
        """`table` says what the error of a batch becomes."""
        self._batch_store = batch_store
        self._store = store
        self._spec = spec
        self._preparer = preparer
        self._engine = engine
        self._settings = settings
        self._table = table
        self._places = asyncio.Semaphore(settings.batches.in_flight)
        self._shards: dict[asyncio.Task[None], tuple[str, int]] = {}
        self._drawn: Counter[tuple[str, int]] = Counter()  # pictures of shards that are being drawn here
        self._turns: dict[str, int] = {}  # when each tenant and each batch last had its turn
        self._rest_until: dict[str, float] = {}
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Draws until stop()."""
        self._loop = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Lets go of everything; the store has what is drawn."""
        tasks = [*self._shards, *([self._loop] if self._loop is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def done(self, row: Row) -> int:
        """Pictures of a batch that are drawn; what other servers draw is counted by the shard."""
        if "done" in row["detail"]:
            return int(row["detail"]["done"])
        name, size = row["name"], row["shard_pictures"]
        whole = await self._whole(row)
        pictures: int = sum(min(size, row["total"] - shard * size) for shard in whole)
        here = [n for (batch, shard), n in self._drawn.items() if batch == name and shard not in whole]
        return pictures + sum(here)

    def cancelled(self, name: str) -> None:
        """A batch has ended: its pictures leave the engine."""
        for task, (batch, _) in self._shards.items():
            if batch == name:
                task.cancel()

    async def _run(self) -> None:
        while True:
            try:
                await self._turn()
            except Exception:
                _logger.exception("batches are looked at again in a moment")
                await asyncio.sleep(_PAUSE_S)
            await self._batch_store.wait_for_work()

    async def _turn(self) -> None:
        """Gives free places to the batches whose turn it is."""
        rows = {row["name"]: row for row in await self._batch_store.active()}
        for task, (name, _) in self._shards.items():
            if name not in rows:  # ended by another server
                task.cancel()
        known = {*rows, *(row["tenant"] for row in rows.values())}
        self._turns = {key: turn for key, turn in self._turns.items() if key in known}
        self._rest_until = {name: until for name, until in self._rest_until.items() if name in rows}
        now = time.monotonic()
        waiting = [row for row in rows.values() if self._rest_until.get(row["name"], 0.0) <= now]
        while waiting and len(self._shards) < _SHARDS_AT_ONCE:
            row = min(waiting, key=lambda row: (self._turns.get(row["tenant"], 0), self._turns.get(row["name"], 0)))
            claims = Claims(self._store, BatchName.parse(row["name"]), self._settings.batches.lease)
            claim = await self._claimed(row, claims)
            if claim is None:
                waiting.remove(row)
                continue
            turn = max(self._turns.values(), default=0) + 1
            self._turns[row["tenant"]] = self._turns[row["name"]] = turn
            task = asyncio.create_task(self._shard(row, claims, claim))
            self._shards[task] = (row["name"], claim.shard)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._drawn.pop(self._shards.pop(task), None)
        self._batch_store.wake()

    async def _claimed(self, row: Row, claims: Claims) -> Claim | None:
        """A shard that is neither whole nor drawn by any server; the number of shards where all are whole, for the
        manifest."""
        name, shards = row["name"], _shards(row)
        here = {shard for batch, shard in self._shards.values() if batch == name}
        whole = await retry_while_unavailable(lambda: self._whole(row))
        left = [shard for shard in range(shards) if shard not in whole and shard not in here]
        # At random, so that servers which share a store seldom want the same one.
        random.shuffle(left)
        if len(whole) == shards and not here:
            left = [shards]
        return await _stored(claims.take, left) if left else None

    async def _whole(self, row: Row) -> set[int]:
        return await asyncio.to_thread(finished, self._store, BatchName.parse(row["name"]), _shards(row))

    async def _shard(self, row: Row, claims: Claims, claim: Claim) -> None:
        try:
            async with claims.held(claim):
                work = await self._work(row)
                if claim.shard == work.order.plan.shards:
                    await self._close(row, work)
                else:
                    await self._draw(work, claim.shard)
        except Exception as error:
            await self._failed(row, error)

    async def _draw(self, work: Work, shard: int) -> None:
        name = str(work.name)
        items = await _stored(work.output.missing, shard)
        if items is None:
            return
        self._drawn[name, shard] = len(work.order.plan.items(shard)) - len(items)
        try:
            async with asyncio.TaskGroup() as group:
                for item in items:
                    group.create_task(self._item(work, shard, item))
            await _stored(work.output.finish, shard)
        except asyncio.CancelledError:
            with suppress(StorageError):
                await asyncio.to_thread(work.output.tidy, shard)
            raise
        self._batch_store.watchers.notify(name)

    async def _item(self, work: Work, shard: int, item: Item) -> None:
        async with self._places:
            data = await self._picture(work, item)
            await _stored(work.output.put, item, data)
        self._drawn[str(work.name), shard] += 1
        self._batch_store.watchers.notify(str(work.name))

    async def _picture(self, work: Work, item: Item) -> bytes:
        asked = work.order.request(f"tenants/{work.name.tenant}", item)
        params = validate(asked, self._spec, self._settings.defaults, self._settings.limits)
        while True:
            request = await self._preparer.prepare(
                params, work.principal, arrived=time.monotonic(), versions=work.versions
            )
            try:
                self._engine.submit(request)
                break
            except ResourceExhausted as full:
                await asyncio.sleep(full.retry_after.total_seconds() if full.retry_after else _PAUSE_S)
        try:
            async for event in request.mailbox.events():
                if isinstance(event, Drawn):
                    data, _ = await asyncio.to_thread(to_file, event.pixels, params, request.records[0])
                    return data
        finally:
            request.gone.set()
        raise AssertionError("unreachable: a mailbox ends by an error only")

    async def _work(self, row: Row) -> Work:
        """All that it takes to draw a batch. Raises FailedPrecondition when that is another model's work."""
        if row["weights"] != self._spec.digest:
            raise FailedPrecondition(
                f"{row['name']} was begun with another model, and is not mixed",
                reason="MODEL_CHANGED",
                metadata={"weights": row["weights"], "weights_now": self._spec.digest},
            )
        batch = await self.spec(row)
        name = BatchName.parse(row["name"])
        made = order(batch, row["shard_pictures"])
        output = Output(
            self._store,
            name,
            made.plan,
            ending=ENDINGS[FORMATS[batch.format]],
            webdataset=batch.layout == resources_pb2.Batch.LAYOUT_WEBDATASET,
        )
        versions = {use.word: VersionName.parse(use.version) for use in batch.words}
        principal = from_json(row["principal"])
        return Work(name=name, order=made, output=output, principal=principal, versions=versions)

    async def spec(self, row: Row) -> resources_pb2.Batch:
        """The whole Batch that a row was created with."""
        data = await _stored(Blobs(self._store).get, row["blob"])
        return resources_pb2.Batch.FromString(data)

    async def _close(self, row: Row, work: Work) -> None:
        await _stored(work.output.close)
        with suppress(FailedPrecondition):  # another server was first, or it was cancelled
            await self._batch_store.move(MoveBatch(name=row["name"], move=Move.FINISH, detail={"done": row["total"]}))

    async def _failed(self, row: Row, error: Exception) -> None:
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        known: Error = self._table.translate(error)
        if known.retry_after is not None or known.code.name in ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED"):
            _logger.warning("a batch pauses", batch=row["name"], reason=known.reason, message=known.message)
            self._rest_until[row["name"]] = time.monotonic() + _PAUSE_S
            return
        _logger.error("a batch has failed", batch=row["name"], reason=known.reason, message=known.message)
        detail = {"done": await self.done(row), "error": error_text(known)}
        with suppress(FailedPrecondition):
            await self._batch_store.move(MoveBatch(name=row["name"], move=Move.FAIL, detail=detail))
        self.cancelled(row["name"])


def _shards(row: Row) -> int:
    return -(-int(row["total"]) // int(row["shard_pictures"]))


async def _stored(work: Any, *arguments: Any) -> Any:
    """`work` in a thread, again for as long as the store is away; it must bear being repeated."""
    return await retry_while_unavailable(lambda: asyncio.to_thread(work, *arguments))
