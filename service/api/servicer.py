"""The rpcs of GenerationService."""

import asyncio
import time
from collections.abc import AsyncIterator
from math import inf
from typing import Any

import grpc.aio
import structlog
from google.protobuf.duration_pb2 import Duration
from pseudoword.generation.v1 import generation_pb2, generation_pb2_grpc, resources_pb2
from pseudoword.names import InvalidName, TenantName, WordRef

from diffusion.checkpoint import BaseModel
from diffusion.conversions import base_model
from diffusion.pictures import to_png
from diffusion.schedulers import SCHEDULERS
from rpc.identity import Role, current_principal
from rpc.validate import Violations
from service.batches.rpcs import BatchRpcs, NoBatches
from service.engine.engine import Engine
from service.request.image_file import to_file
from service.request.mailbox import Drawn, Previewed, Started, Stepped
from service.request.params import validate
from service.request.prepare import RequestPreparer
from service.request.request import Request
from service.settings import GenerationSettings
from service.words.resolver import WordResolver

CHUNK_BYTES = 256 * 2**10
_MAX_PREFETCH = 64

_logger = structlog.get_logger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]
Responses = AsyncIterator[generation_pb2.GenerateResponse]


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """GenerationService on one engine."""

    def __init__(
        self,
        model: BaseModel,
        engine: Engine,
        resolver: WordResolver,
        preparer: RequestPreparer,
        batches: BatchRpcs | NoBatches,
        settings: GenerationSettings,
    ) -> None:
        self._model = model
        self._engine = engine
        self._resolver = resolver
        self._preparer = preparer
        self._batches = batches
        self._settings = settings

    async def Generate(self, request: generation_pb2.GenerateRequest, context: Context) -> Responses:
        """Validates, resolves the words, submits to the engine, and streams the events of the mailbox."""
        arrived = time.monotonic()
        params = validate(request, self._model.spec, self._settings.defaults, self._settings.limits)
        principal = current_principal()
        principal.require(params.tenant, Role.READER)
        left_s = context.time_remaining()
        prepared = await self._preparer.prepare(
            params,
            principal,
            arrived=arrived,
            deadline=inf if left_s is None else arrived + left_s,
            max_staleness=request.max_staleness.ToTimedelta() if request.HasField("max_staleness") else None,
        )
        waiting, records = self._engine.waiting(), prepared.records
        accepted = generation_pb2.Accepted(records=records, queue_position=waiting, calls=params.calls)
        accepted.predicted_start.FromTimedelta(self._engine.predict(params.priority))
        self._engine.submit(prepared)
        try:
            yield generation_pb2.GenerateResponse(accepted=accepted)
            async for response in self._pictures(prepared):
                yield response
        finally:
            # Runs also when the client cancels: the engine then frees the places before its next call.
            prepared.cancelled.set()

    async def _pictures(self, request: Request) -> Responses:
        params = request.params
        started = request.arrived
        sent = 0
        async for event in request.mailbox.events():
            match event:
                case Started():
                    started = time.monotonic()
                case Stepped(call=call, calls=calls):
                    progress = generation_pb2.Progress(call=call, calls=calls)
                    yield generation_pb2.GenerateResponse(progress=progress)
                case Previewed(index=index, call=call, pixels=pixels):
                    preview = generation_pb2.Preview(index=index, call=call, png=to_png(pixels))
                    yield generation_pb2.GenerateResponse(preview=preview)
                case Drawn(index=index, pixels=pixels, flagged=flagged, withheld=withheld):
                    data, info = await asyncio.to_thread(to_file, pixels, params, request.records[index])
                    info.flagged, info.withheld = flagged, withheld
                    for start in range(0, len(data), CHUNK_BYTES):
                        last = start + CHUNK_BYTES >= len(data)
                        chunk = generation_pb2.PictureChunk(
                            index=index, data=data[start : start + CHUNK_BYTES], info=info if last else None
                        )
                        yield generation_pb2.GenerateResponse(chunk=chunk)
                    sent += 1
            if sent == params.count:
                break
        done = generation_pb2.Done(
            count=sent, waited=_duration(started - request.arrived), drawn=_duration(time.monotonic() - started)
        )
        yield generation_pb2.GenerateResponse(done=done)

    async def GetModel(self, request: generation_pb2.GetModelRequest, context: Context) -> resources_pb2.Model:
        """The resident model, its limits and defaults."""
        current_principal()
        spec, limits, defaults = self._model.spec, self._settings.limits, self._settings.defaults
        return resources_pb2.Model(
            base_model=base_model(spec),
            weights_digest=spec.digest,
            resolution=spec.sample_size_px,
            size_multiple=spec.size_multiple_px,
            max_size=limits.max_size_px,
            max_tokens=spec.encoders[0].length,
            max_steps=limits.max_steps,
            max_count=limits.max_count,
            defaults=resources_pb2.PictureSettings(
                steps=defaults.steps,
                guidance_scale=defaults.guidance,
                scheduler=defaults.scheduler,
                width=spec.sample_size_px,
                height=spec.sample_size_px,
            ),
            schedulers=[
                resources_pb2.Scheduler(
                    name=name, description=scheduler.description, calls_for_20_steps=scheduler.model_calls(20)
                )
                for name, scheduler in SCHEDULERS.items()
            ],
            device=self._model.device.type,
            dtype=str(self._model.dtype).removeprefix("torch."),
        )

    async def PrefetchWords(
        self, request: generation_pb2.PrefetchWordsRequest, context: Context
    ) -> generation_pb2.PrefetchWordsResponse:
        """Fetches words before their first use."""
        wrong = Violations()
        tenant = wrong.name(TenantName, request.parent, "parent")
        if not 1 <= len(request.words) <= _MAX_PREFETCH:
            wrong.add("words", f"has {len(request.words)} words; it must have 1 to {_MAX_PREFETCH}")
        refs = []
        for index, text in enumerate(request.words[:_MAX_PREFETCH]):
            try:
                refs.append(WordRef.parse(text))
            except InvalidName as error:
                wrong.add(f"words[{index}]", str(error))
        wrong.raise_if_any()
        principal = current_principal()
        principal.require(tenant.tenant, Role.READER)
        words = await self._resolver.resolve(tenant.tenant, refs, principal, field="words")
        return generation_pb2.PrefetchWordsResponse(words=[word.use for word in words])

    async def CreateBatch(self, request: generation_pb2.CreateBatchRequest, context: Context) -> resources_pb2.Batch:
        """Validates a batch and starts it."""
        return await self._batches.create(request, context)

    async def GetBatch(self, request: generation_pb2.GetBatchRequest, context: Context) -> resources_pb2.Batch:
        """A batch's current state."""
        return await self._batches.get(request)

    async def ListBatches(
        self, request: generation_pb2.ListBatchesRequest, context: Context
    ) -> generation_pb2.ListBatchesResponse:
        """A tenant's batches, newest first."""
        return await self._batches.list(request)

    def WatchBatch(
        self, request: generation_pb2.WatchBatchRequest, context: Context
    ) -> AsyncIterator[generation_pb2.WatchBatchResponse]:
        """A batch, then each of its changes until it has ended."""
        return self._batches.watch(request)

    async def CancelBatch(self, request: generation_pb2.CancelBatchRequest, context: Context) -> resources_pb2.Batch:
        """Cancels a batch."""
        return await self._batches.cancel(request, context)


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
