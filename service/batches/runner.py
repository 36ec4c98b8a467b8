"""Draws batches into the store: a shard at a time, fair between tenants, after all other requests.

The runner keeps no state that could be lost: the log has what to draw, and the store has what is drawn. A server that
restarts, or joins others on the same store, draws the missing shards that no other server has claimed.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable
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

_MAX_SHARDS = 2  # one is drawn while the other one is packed
_RETRY_PAUSE_S = 2.0  # before a batch is retried after a temporary error

_logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A batch that is being drawn."""

    name: BatchName
    order: Order
    output: Output
    principal: Principal
    versions: dict[str, VersionName]


class Runner:
    """Draws a server's share of the batches. Lives on the event loop."""

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
        """`table` maps a batch's exception to the error that is stored with the batch."""
        self._batch_store = batch_store
        self._store = store
        self._spec = spec
        self._preparer = preparer
        self._engine = engine
        self._settings = settings
        self._table = table
        self._places = asyncio.Semaphore(settings.batches.in_flight)
        self._shards: dict[asyncio.Task[None], tuple[str, int]] = {}
        self._drawn: Counter[tuple[str, int]] = Counter()  # finished pictures of each shard that this server draws
        self._last_turn: dict[str, int] = {}  # number of the last turn of each tenant and of each batch
        self._rest_until: dict[str, float] = {}
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts drawing, until stop()."""
        self._loop = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Cancels all drawing; the store keeps the finished pictures."""
        tasks = [*self._shards, *([self._loop] if self._loop is not None else [])]
        for task in tasks:
            _cancel(task)
        if tasks:
            await asyncio.wait(tasks)

    async def done(self, row: Row) -> int:
        """Number of finished pictures of a batch; of shards that other servers draw, only complete ones are counted."""
        if "done" in row["detail"]:
            return int(row["detail"]["done"])
        name, size = row["name"], row["shard_pictures"]
        complete = await self._complete_shards(row)
        pictures: int = sum(min(size, row["total"] - shard * size) for shard in complete)
        here = [n for (batch, shard), n in self._drawn.items() if batch == name and shard not in complete]
        return pictures + sum(here)

    def cancelled(self, name: str) -> None:
        """Stops drawing a batch that has ended."""
        for task, (batch, _) in self._shards.items():
            if batch == name:
                _cancel(task)

    async def _run(self) -> None:
        while True:
            try:
                await self._start_shards()
            except Exception:
                _logger.exception("starting shards failed; retrying")
                await asyncio.sleep(_RETRY_PAUSE_S)
            await self._batch_store.wait_for_work()

    async def _start_shards(self) -> None:
        """Starts shards of the batches whose turn it is, while there are free places."""
        rows = {row["name"]: row for row in await self._batch_store.active()}
        for task, (name, _) in self._shards.items():
            if name not in rows:  # ended by another server
                _cancel(task)
        known = {*rows, *(row["tenant"] for row in rows.values())}
        self._last_turn = {key: turn for key, turn in self._last_turn.items() if key in known}
        self._rest_until = {name: until for name, until in self._rest_until.items() if name in rows}
        now = time.monotonic()
        waiting = [row for row in rows.values() if self._rest_until.get(row["name"], 0.0) <= now]
        while waiting and len(self._shards) < _MAX_SHARDS:
            row = min(
                waiting, key=lambda row: (self._last_turn.get(row["tenant"], 0), self._last_turn.get(row["name"], 0))
            )
            claims = Claims(self._store, BatchName.parse(row["name"]), self._settings.batches.lease)
            claim = await self._claim_shard(row, claims)
            if claim is None:
                waiting.remove(row)
                continue
            turn = max(self._last_turn.values(), default=0) + 1
            self._last_turn[row["tenant"]] = self._last_turn[row["name"]] = turn
            task = asyncio.create_task(self._run_shard(row, claims, claim))
            self._shards[task] = (row["name"], claim.shard)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._drawn.pop(self._shards.pop(task), None)
        self._batch_store.wake()

    async def _claim_shard(self, row: Row, claims: Claims) -> Claim | None:
        """Claims a shard that is neither complete nor claimed by any server. If all shards are complete, claims the
        number of shards instead, which stands for writing the manifest. None if there is nothing to claim."""
        name, shards = row["name"], _shard_count(row)
        here = {shard for batch, shard in self._shards.values() if batch == name}
        complete = await retry_while_unavailable(lambda: self._complete_shards(row))
        left = [shard for shard in range(shards) if shard not in complete and shard not in here]
        # In random order, so that servers on one store seldom try to claim the same shard.
        random.shuffle(left)
        if len(complete) == shards and not here:
            left = [shards]
        return await _in_store(claims.take, left) if left else None

    async def _complete_shards(self, row: Row) -> set[int]:
        return await asyncio.to_thread(finished, self._store, BatchName.parse(row["name"]), _shard_count(row))

    async def _run_shard(self, row: Row, claims: Claims, claim: Claim) -> None:
        try:
            async with claims.held(claim):
                work = await self._load_work(row)
                if claim.shard == work.order.plan.shards:
                    await self._close(row, work)
                else:
                    await self._draw(work, claim.shard)
        except Exception as error:
            await self._handle_error(row, error)

    async def _draw(self, work: Work, shard: int) -> None:
        name = str(work.name)
        items = await _in_store(work.output.missing, shard)
        if items is None:
            return
        self._drawn[name, shard] = len(work.order.plan.items(shard)) - len(items)
        try:
            async with asyncio.TaskGroup() as group:
                for item in items:
                    group.create_task(self._draw_item(work, shard, item))
            await _in_store(work.output.finish, shard)
        except asyncio.CancelledError:
            with suppress(StorageError):
                await asyncio.to_thread(work.output.tidy, shard)
            raise
        self._batch_store.watchers.notify(name)

    async def _draw_item(self, work: Work, shard: int, item: Item) -> None:
        async with self._places:
            data = await self._draw_picture(work, item)
            await retry_while_unavailable(lambda: _to_its_end(asyncio.to_thread(work.output.put, item, data)))
        self._drawn[str(work.name), shard] += 1
        self._batch_store.watchers.notify(str(work.name))

    async def _draw_picture(self, work: Work, item: Item) -> bytes:
        message = work.order.request(f"tenants/{work.name.tenant}", item)
        params = validate(message, self._spec, self._settings.defaults, self._settings.limits)
        while True:
            request = await self._preparer.prepare(
                params, work.principal, arrived=time.monotonic(), versions=work.versions
            )
            try:
                self._engine.submit(request)
                break
            except ResourceExhausted as full:
                await asyncio.sleep(full.retry_after.total_seconds() if full.retry_after else _RETRY_PAUSE_S)
        try:
            async for event in request.mailbox.events():
                if isinstance(event, Drawn):
                    data, _ = await asyncio.to_thread(to_file, event.pixels, params, request.records[0])
                    return data
        finally:
            request.cancelled.set()
        raise AssertionError("unreachable: a mailbox's events end with an error only")

    async def _load_work(self, row: Row) -> Work:
        """Loads a batch for drawing. Raises FailedPrecondition if the batch was started with another model."""
        if row["weights"] != self._spec.digest:
            raise FailedPrecondition(
                f"{row['name']} was started with another model, which must draw all its pictures: create it again",
                reason="MODEL_CHANGED",
                metadata={"weights": row["weights"], "weights_now": self._spec.digest},
            )
        batch = await self.spec(row)
        name = BatchName.parse(row["name"])
        checked = order(batch, row["shard_pictures"])
        output = Output(
            self._store,
            name,
            checked.plan,
            ending=ENDINGS[FORMATS[batch.format]],
            webdataset=batch.layout == resources_pb2.Batch.LAYOUT_WEBDATASET,
        )
        versions = {use.word: VersionName.parse(use.version) for use in batch.words}
        principal = from_json(row["principal"])
        return Work(name=name, order=checked, output=output, principal=principal, versions=versions)

    async def spec(self, row: Row) -> resources_pb2.Batch:
        """The whole Batch that a row was created with."""
        data = await _in_store(Blobs(self._store).get, row["blob"])
        return resources_pb2.Batch.FromString(data)

    async def _close(self, row: Row, work: Work) -> None:
        await _in_store(work.output.close)
        with suppress(FailedPrecondition):  # another server has finished it, or it was cancelled
            await self._batch_store.move(MoveBatch(name=row["name"], move=Move.FINISH, detail={"done": row["total"]}))

    async def _handle_error(self, row: Row, error: Exception) -> None:
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        known: Error = self._table.translate(error)
        if known.retry_after is not None or known.code.name in ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED"):
            _logger.warning(
                "batch paused after a temporary error", batch=row["name"], reason=known.reason, message=known.message
            )
            self._rest_until[row["name"]] = time.monotonic() + _RETRY_PAUSE_S
            return
        _logger.error("batch failed", batch=row["name"], reason=known.reason, message=known.message)
        detail = {"done": await self.done(row), "error": error_text(known)}
        with suppress(FailedPrecondition):
            await self._batch_store.move(MoveBatch(name=row["name"], move=Move.FAIL, detail=detail))
        self.cancelled(row["name"])


def _shard_count(row: Row) -> int:
    return -(-int(row["total"]) // int(row["shard_pictures"]))


async def _in_store(work: Any, *arguments: Any) -> Any:
    """Runs `work` in a thread, and retries while the store is unavailable; `work` must be idempotent."""
    return await retry_while_unavailable(lambda: asyncio.to_thread(work, *arguments))


def _cancel(task: asyncio.Task[None]) -> None:
    """Cancels a task once: a second time would interrupt its clean-up, and leave a claim or a picture in the store."""
    if not task.cancelling():
        task.cancel()


async def _to_its_end(write: Awaitable[None]) -> None:
    """Waits for `write` even when cancelled, so that no object lands after the clean-up that follows."""
    task = asyncio.ensure_future(write)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
