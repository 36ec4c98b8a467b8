"""The rpcs for batches."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NoReturn

from pseudoword.generation.v1 import generation_pb2, resources_pb2
from pseudoword.names import BatchName, TenantName, WordRef

from diffusion.checkpoint import BaseModel
from diffusion.encoder import PromptEncoder
from diffusion.errors import PromptTooLong
from rpc.commits import commit_blob, discard
from rpc.errors import FailedPrecondition, InvalidArgument, Unavailable
from rpc.filters import Field, Kind, filtered
from rpc.identity import Role, current_principal, to_json
from rpc.pages import Cursor, creation_key, cut, page_size
from rpc.validate import Violations, admitted
from rpc.watchers import wait_for_news
from service.batches.batch_store import BatchStore
from service.batches.conversions import batch_of, store_uri, summary
from service.batches.life_cycle import Move, State
from service.batches.runner import Runner
from service.batches.state_machine import CreateBatch, MoveBatch, Row, has_ended
from service.batches.validation import Order, validate_batch
from service.request.params import GenerationParams
from service.settings import GenerationSettings
from service.words.resolver import ResolvedWord, WordResolver
from storage.objects.base import ObjectStore
from storage.objects.blobs import Blobs

Watch = AsyncIterator[generation_pb2.WatchBatchResponse]

_MAX_WORDS_PER_CALL = 64  # the registry's limit for one call
_POLL_INTERVAL_S = 2.0  # the progress that other servers make is polled
_FIELDS: Mapping[str, Field] = {
    "state": Field(kind=Kind.ENUM, sql="'STATE_' || state", values=tuple(f"STATE_{state}" for state in State)),
    "creator": Field(kind=Kind.TEXT, sql="creator"),
    "create_time": Field(kind=Kind.TIME, sql="created_us"),
}


class BatchRpcs:
    """The batch rpcs of one server. Watches end when `draining` is set."""

    def __init__(
        self,
        model: BaseModel,
        batch_store: BatchStore,
        runner: Runner,
        resolver: WordResolver,
        store: ObjectStore,
        settings: GenerationSettings,
        draining: asyncio.Event,
    ) -> None:
        self._spec = model.spec
        self._encoder = PromptEncoder(model)
        self._batch_store = batch_store
        self._runner = runner
        self._resolver = resolver
        self._store = store
        self._blobs = Blobs(store)
        self._place = store_uri(settings.store.address)
        self._settings = settings
        self._draining = draining

    async def create(self, request: generation_pb2.CreateBatchRequest, context: Any) -> resources_pb2.Batch:
        """Validates a batch, pins the versions of its words, and stores it as a blob before the log names it."""
        wrong = Violations()
        tenant = admitted(wrong, TenantName, request.parent, "parent", Role.WRITER).tenant
        wrong.request_id(request)
        order, all_params = await asyncio.to_thread(
            validate_batch, request.parent, request.batch, self._spec, self._settings, wrong
        )
        words = await self._resolve_words(tenant, all_params)
        await asyncio.to_thread(self._check_lengths, order, all_params, words)
        order.batch.words.extend(word.use for word in words)
        caller = current_principal().caller
        blob = await self._write_spec(tenant, order, request.validate_only)
        command = CreateBatch(
            # The id begins with a letter, as resource names require.
            name=str(BatchName(tenant, f"b{secrets.token_hex(10)}")),
            tenant=tenant,
            spec=summary(order.batch),
            blob=blob,
            total=order.plan.total,
            shard_pictures=order.plan.shard_pictures,
            weights=self._spec.digest,
            creator=caller.name,
            principal=to_json(caller),
            max_active=self._settings.batches.max_active,
        )
        row = await commit_blob(
            blob, lambda: self._batch_store.commit(tenant, command, request, context), self._discard
        )
        if request.validate_only:
            return self._message(row, 0, order.batch)
        # A repeated request returns the batch's current state.
        return await self._full_message(await self._batch_store.row(row["name"]))

    async def get(self, request: generation_pb2.GetBatchRequest) -> resources_pb2.Batch:
        name = admitted(Violations(), BatchName, request.name, "name", Role.READER)
        return await self._full_message(await self._batch_store.row(str(name)))

    async def list(self, request: generation_pb2.ListBatchesRequest) -> generation_pb2.ListBatchesResponse:
        wrong = Violations()
        tenant = admitted(wrong, TenantName, request.parent, "parent", Role.READER).tenant
        size = page_size(wrong, request)
        condition = filtered(wrong, request, _FIELDS)
        wrong.raise_if_any()
        cursor = Cursor.read(request, [int, str])
        after = None if cursor is None else cursor.key
        rows = await self._batch_store.page(tenant, after, size + 1, condition)
        batches = [self._message(row, await self._runner.done(row)) for row in rows[:size]]
        batches, token = cut(rows, batches, creation_key, request, cursor)
        return generation_pb2.ListBatchesResponse(batches=batches, next_page_token=token)

    async def watch(self, request: generation_pb2.WatchBatchRequest) -> Watch:
        """The batch, then each change. A slow reader may miss progress, but not the current state."""
        name = str(admitted(Violations(), BatchName, request.name, "name", Role.READER))
        sent = ("", -1)
        with self._batch_store.watchers.watching(name) as news:
            while not self._draining.is_set():
                news.clear()
                row = await self._batch_store.row(name)
                done = await self._runner.done(row)
                if (row["revision"], done) != sent:
                    sent = (row["revision"], done)
                    yield generation_pb2.WatchBatchResponse(batch=self._message(row, done))
                if has_ended(row):
                    return
                await wait_for_news(news, self._draining, _POLL_INTERVAL_S)
        raise Unavailable("the server is stopping; watch again", reason="SERVER_STOPPING")

    async def cancel(self, request: generation_pb2.CancelBatchRequest, context: Any) -> resources_pb2.Batch:
        """Cancels a batch. Its pictures that were drawn stay in the store."""
        wrong = Violations()
        name = admitted(wrong, BatchName, request.name, "name", Role.WRITER)
        wrong.request_id(request)
        wrong.raise_if_any()
        row = await self._batch_store.row(str(name))
        move = MoveBatch(
            name=str(name), move=Move.CANCEL, etag=request.etag, detail={"done": await self._runner.done(row)}
        )
        row = await self._batch_store.commit(name.tenant, move, request, context)
        self._runner.cancelled(row["name"])
        return await self._full_message(row)

    async def _resolve_words(self, tenant: str, all_params: Sequence[GenerationParams]) -> Sequence[ResolvedWord]:
        refs: dict[WordRef, None] = {}
        for params in all_params:
            refs |= dict.fromkeys((*params.prompt.words, *params.negative_prompt.words))
        all_refs, words = [*refs], []
        for start in range(0, len(all_refs), _MAX_WORDS_PER_CALL):
            words += await self._resolver.resolve(
                tenant,
                all_refs[start : start + _MAX_WORDS_PER_CALL],
                current_principal(),
                field="batch",
                allow_family=all_params[0].allow_family,
            )
        return words

    def _check_lengths(
        self, order: Order, all_params: Sequence[GenerationParams], words: Sequence[ResolvedWord]
    ) -> None:
        counts = {word.ref: len(word.vectors) for word in words}
        for number, params in enumerate(all_params):
            try:
                for prompt in (params.prompt, params.negative_prompt):
                    self._encoder.tokenizer.tokenize(prompt, counts)
            except PromptTooLong as error:
                field = f"batch.prompts[{number}]" if order.batch.prompts else "batch.settings.prompt"
                raise InvalidArgument(
                    f"{order.plan.prompts[number][:100]!r}: {error.message}",
                    reason=error.reason,
                    metadata=error.metadata,
                    violations=[(field, error.message)],
                ) from None

    async def _write_spec(self, tenant: str, order: Order, validate_only: bool) -> str:
        """Writes a batch as a blob and returns its name; with `validate_only` writes nothing and returns an empty
        name."""
        if validate_only:
            return ""
        data = order.batch.SerializeToString(deterministic=True)
        return (await asyncio.to_thread(self._blobs.put, tenant, data)).name

    async def _discard(self, blob: str) -> None:
        if blob:
            await discard(self._store, blob)

    async def _full_message(self, row: Row) -> resources_pb2.Batch:
        return self._message(row, await self._runner.done(row), await self._runner.spec(row))

    def _message(self, row: Row, done: int, spec: resources_pb2.Batch | None = None) -> resources_pb2.Batch:
        return batch_of(row, done, self._place, spec)


class NoBatches:
    """The batch rpcs of a server without a store: they refuse every request."""

    async def create(self, request: generation_pb2.CreateBatchRequest, context: Any) -> resources_pb2.Batch:
        _refuse(request.parent, TenantName, Role.WRITER)

    async def get(self, request: generation_pb2.GetBatchRequest) -> resources_pb2.Batch:
        _refuse(request.name, BatchName, Role.READER)

    async def list(self, request: generation_pb2.ListBatchesRequest) -> generation_pb2.ListBatchesResponse:
        _refuse(request.parent, TenantName, Role.READER)

    def watch(self, request: generation_pb2.WatchBatchRequest) -> Watch:
        _refuse(request.name, BatchName, Role.READER)

    async def cancel(self, request: generation_pb2.CancelBatchRequest, context: Any) -> resources_pb2.Batch:
        _refuse(request.name, BatchName, Role.WRITER)


def _refuse(name: str, kind: Any, role: Role) -> NoReturn:
    """Refuses unauthorised callers with their own error, then every other caller."""
    admitted(Violations(), kind, name, "parent" if kind is TenantName else "name", role)
    raise FailedPrecondition(
        "this server has no store for batches: its operator can set store.address", reason="NO_BATCH_STORE"
    )
