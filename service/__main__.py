"""`python -m service`: the Generation service."""

import asyncio

from pseudoword.generation.v1.generation_pb2_grpc import add_GenerationServiceServicer_to_server
from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub
from pseudoword.registry.v1.resources_pb2 import Version

from diffusion import errors as diffusion_errors
from diffusion.settings import load_model
from rpc.clients import channel
from rpc.errors import FailedPrecondition, InvalidArgument, Unavailable
from rpc.logs import configure
from rpc.server import Server, run
from rpc.table import STORAGE
from service.admission import Roster
from service.engine import Engine
from service.meanings import Meanings
from service.metrics import EngineMetrics
from service.server import GenerationServicer
from service.settings import GenerationSettings
from service.vectors import VectorCache
from service.watch import RegistryWatch
from service.words import Words

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


async def main() -> None:
    """Loads the model, then serves until SIGTERM; ready once the model is warm."""
    settings = GenerationSettings.load("service")
    configure("generation", settings.server.log_level, settings.server.log_format)
    async with (
        Server(settings.server, name="generation", table=TABLE) as server,
        channel(settings.registry) as registry,
    ):
        model = await asyncio.to_thread(load_model, settings.model, settings.denoiser)
        metrics = EngineMetrics(server.metrics)
        limits = settings.limits
        roster = Roster(
            max_pictures=limits.max_pictures, max_rows=limits.max_rows, aging_s=limits.aging.total_seconds()
        )
        engine = Engine(model, roster, metrics)
        metrics.waiting.set_function(engine.waiting)
        stub = RegistryServiceStub(registry)
        meanings: Meanings[Version] = Meanings(settings.words.max_meanings)
        words = Words(stub, model, meanings, VectorCache(settings.words.cache_bytes), metrics, settings.words)
        watch = asyncio.create_task(RegistryWatch(stub, meanings).run())
        servicer = GenerationServicer(model, engine, words, settings)
        server.add(add_GenerationServiceServicer_to_server, servicer, SERVICE)
        await server.start()
        await asyncio.to_thread(engine.start)
        server.mark_ready()
        try:
            await server.run_until_signalled()
        finally:
            watch.cancel()
            await asyncio.wait({watch})
            await asyncio.to_thread(engine.stop)


if __name__ == "__main__":
    run("generation", main())
