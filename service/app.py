"""The Generation server: one resident model, warmed up before the server is ready; batches if it has a store."""

import asyncio

from pseudoword.generation.v1.generation_pb2_grpc import add_GenerationServiceServicer_to_server
from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub
from pseudoword.registry.v1.resources_pb2 import Version

from diffusion import errors as diffusion_errors
from diffusion.checkpoint import BaseModel
from diffusion.loading import load_model
from diffusion.safety import SafetyChecker
from diffusion.threads import in_passing
from rpc.app import App
from rpc.clients import channel
from rpc.errors import FailedPrecondition, InvalidArgument, Unavailable
from rpc.server import Server
from rpc.settings import SettingsError
from rpc.storage_errors import STORAGE
from service.api.servicer import GenerationServicer
from service.batches.batch_store import BatchStore
from service.batches.rpcs import BatchRpcs, NoBatches
from service.batches.runner import Runner
from service.batches.state_machine import SHARDS, BatchStateMachine
from service.engine.engine import Engine
from service.metrics import EngineMetrics
from service.request.prepare import RequestPreparer
from service.safety import Safety
from service.scheduling.cost_model import StepCostModel
from service.scheduling.scheduler import Scheduler
from service.settings import GenerationSettings, SafetyPolicy
from service.words.registry_watch import RegistryWatch
from service.words.resolution_cache import ResolutionCache
from service.words.resolver import WordResolver
from service.words.tensor_cache import TensorCache

SERVICE = "pseudoword.generation.v1.GenerationService"
TABLE = STORAGE.extended(
    {
        diffusion_errors.PromptTooLong: InvalidArgument,
        diffusion_errors.SchedulerUnknown: InvalidArgument,
        diffusion_errors.PictureInvalid: InvalidArgument,
        diffusion_errors.DenoiserUnavailable: Unavailable,
        diffusion_errors.DenoiserRefused: FailedPrecondition,
    }
)


class Generation(App):
    """The Generation server."""

    scheduler_class = Scheduler

    def __init__(self, settings: GenerationSettings, model: BaseModel | None = None) -> None:
        """`model` is a model that is already loaded; by default the settings' model is loaded. Raises SettingsError."""
        super().__init__(Server(settings.server, name="generation", table=TABLE))
        self._settings = settings
        self._model = model
        self._runner: Runner | None = None

    async def _open(self) -> None:
        settings = self._settings
        registry = RegistryServiceStub(await self._stack.enter_async_context(channel(settings.registry)))
        model = await in_passing(self._load)
        metrics = EngineMetrics(self.server.metrics)
        safety = await in_passing(lambda: _safety(settings, model))
        engine = Engine(model, self._scheduler(model), metrics, safety=safety)
        metrics.waiting.set_function(engine.waiting)
        resolutions: ResolutionCache[Version] = ResolutionCache(settings.words.max_meanings)
        vectors: TensorCache[str] = TensorCache(settings.words.cache_bytes)
        resolver = WordResolver(registry, model, resolutions, vectors, metrics, settings.words)
        self._run_in_background(RegistryWatch(registry, resolutions).run())
        preparer = RequestPreparer(model, resolver)
        batches: BatchRpcs | NoBatches = NoBatches()
        if settings.store.address:
            store, ledger = await self._open_ledger(settings.store, settings.s3, BatchStateMachine(), shards=SHARDS)
            batch_store = BatchStore(ledger)
            self._runner = Runner(batch_store, store, model.spec, preparer, engine, settings, TABLE)
            batches = BatchRpcs(model, batch_store, self._runner, resolver, store, settings, self.server.draining)
        servicer = GenerationServicer(model, engine, resolver, preparer, batches, settings)
        self.server.add(add_GenerationServiceServicer_to_server, servicer, SERVICE)
        await self._serve()
        await asyncio.to_thread(engine.start)
        self._stack.push_async_callback(asyncio.to_thread, engine.stop)
        if self._runner is not None:
            self._runner.start()
            self._stack.push_async_callback(self._runner.stop)
        self.server.mark_ready()

    async def _drain(self) -> None:
        if self._runner is not None:
            await self._runner.stop()

    def _load(self) -> BaseModel:
        return self._model or load_model(self._settings.model, self._settings.denoiser)

    def _scheduler(self, model: BaseModel) -> Scheduler:
        limits = self._settings.limits
        return self.scheduler_class(
            StepCostModel(model.spec.sample_shape_px),
            max_pictures=limits.max_pictures,
            max_pictures_a_tenant=limits.max_pictures_a_tenant,
            max_rows=limits.max_rows,
            aging_s=limits.aging.total_seconds(),
        )


def _safety(settings: GenerationSettings, model: BaseModel) -> Safety | None:
    """The policy's safety checker; None for OFF. Raises SettingsError if the checkpoint has no checker."""
    if settings.safety is SafetyPolicy.OFF:
        return None
    try:
        checker = SafetyChecker.load(settings.model.source, device=model.device, revision=settings.model.revision)
    except diffusion_errors.CheckpointInvalid as error:
        raise SettingsError(f"safety {settings.safety}: {error.message}") from None
    return Safety(checker, withholds=settings.safety is SafetyPolicy.REFUSE)
