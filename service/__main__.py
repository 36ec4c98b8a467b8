"""`python -m service`: the Generation service."""

import asyncio
from contextlib import AsyncExitStack

from pseudoword.generation.v1.generation_pb2_grpc import add_GenerationServiceServicer_to_server
from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub
from pseudoword.registry.v1.resources_pb2 import Version

from diffusion import errors as diffusion_errors
from diffusion.checkpoint import BaseModel
from diffusion.safety import SafetyChecker
from diffusion.settings import load_model
from diffusion.threads import in_passing
from rpc.clients import channel
from rpc.errors import FailedPrecondition, InvalidArgument, Unavailable
from rpc.logs import configure
from rpc.open_store import end_when_replaced, open_fit_store, open_ledger
from rpc.server import Server, run
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
from service.safety import Safety, SafetyPolicy
from service.scheduling.admission import Roster
from service.scheduling.cost_model import StepCostModel
from service.scheduling.scheduler import Policy
from service.settings import GenerationSettings
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


async def main(roster: type[Roster] = Roster) -> None:
    """Loads the model, then serves until SIGTERM; ready once the model is warm. `roster` decides who runs next."""
    settings = GenerationSettings.load("service")
    configure("generation", settings.server.log_level, settings.server.log_format)
    async with (
        Server(settings.server, name="generation", table=TABLE) as server,
        channel(settings.registry) as registry,
        AsyncExitStack() as stack,  # left before the server: in the opposite order of what is entered below
    ):
        model = await in_passing(lambda: load_model(settings.model, settings.denoiser))
        metrics = EngineMetrics(server.metrics)
        limits = settings.limits
        made = roster(
            max_pictures=limits.max_pictures,
            max_pictures_a_tenant=limits.max_pictures_a_tenant,
            max_rows=limits.max_rows,
            aging_s=limits.aging.total_seconds(),
        )
        pace = StepCostModel((model.spec.sample_size_px, model.spec.sample_size_px))
        safety = await in_passing(lambda: _safety(settings, model))
        engine = Engine(model, Policy(made, pace), metrics, safety=safety)
        metrics.waiting.set_function(engine.waiting)
        stub = RegistryServiceStub(registry)
        meanings: ResolutionCache[Version] = ResolutionCache(settings.words.max_meanings)
        vectors: TensorCache[str] = TensorCache(settings.words.cache_bytes)
        words = WordResolver(stub, model, meanings, vectors, metrics, settings.words)
        watch = asyncio.create_task(RegistryWatch(stub, meanings).run())
        stack.push_async_callback(_ended, watch)
        intake = RequestPreparer(model, words)
        batches: BatchRpcs | NoBatches = NoBatches()
        runner: Runner | None = None
        if settings.store.address:
            store = await asyncio.to_thread(open_fit_store, settings.store, settings.s3)
            stack.callback(store.close)
            ledger = await asyncio.to_thread(open_ledger, store, settings.store, BatchStateMachine(), shards=SHARDS)
            stack.push_async_callback(ledger.close)
            minding = asyncio.create_task(end_when_replaced(server, ledger))
            stack.push_async_callback(_ended, minding)
            stack.callback(ledger.refuse_replaced)
            desk = BatchStore(ledger)
            runner = Runner(desk, store, model.spec, intake, engine, settings, TABLE)
            batches = BatchRpcs(model, desk, runner, words, store, settings, server.draining)
        servicer = GenerationServicer(model, engine, words, intake, batches, settings)
        server.add(add_GenerationServiceServicer_to_server, servicer, SERVICE)
        await server.start()
        stack.push_async_callback(server.stop, grace_s=0)
        await asyncio.to_thread(engine.start)
        stack.push_async_callback(asyncio.to_thread, engine.stop)
        if runner is not None:
            runner.start()
            stack.push_async_callback(runner.stop)
        server.mark_ready()
        await server.run_until_signalled(None if runner is None else runner.stop)


def _safety(settings: GenerationSettings, model: BaseModel) -> Safety | None:
    """Raises SettingsError when the checkpoint has no checker and the policy wants one."""
    if settings.safety is SafetyPolicy.OFF:
        return None
    try:
        checker = SafetyChecker.load(settings.model.source, device=model.device, revision=settings.model.revision)
    except diffusion_errors.CheckpointInvalid as error:
        raise SettingsError(f"safety {settings.safety}: {error.message}") from None
    return Safety(checker, withholds=settings.safety is SafetyPolicy.REFUSE)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


if __name__ == "__main__":
    run("generation", main())
