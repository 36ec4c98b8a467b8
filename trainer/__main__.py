"""`python -m trainer`: the trainer."""

import asyncio
from contextlib import AsyncExitStack

from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub
from pseudoword.trainer.v1.trainer_pb2_grpc import add_TrainerServiceServicer_to_server

from diffusion import errors as diffusion_errors
from diffusion.messages import base_model
from diffusion.pictures import PictureLimits
from diffusion.settings import load_model
from rpc.clients import channel
from rpc.errors import InvalidArgument
from rpc.logs import configure
from rpc.server import Server, run
from rpc.stores import open_fit_store, open_ledger
from rpc.table import STORAGE
from storage.blobs import Blobs
from trainer.book import SHARDS, TrainerBook
from trainer.checks import JobChecks
from trainer.desk import Desk
from trainer.engine import Engine
from trainer.metrics import TrainerMetrics
from trainer.pictures import LoanTerms, Pictures
from trainer.publisher import Publisher
from trainer.server import TrainerServicer
from trainer.settings import TrainerSettings
from trainer.worker import Worker

SERVICE = "pseudoword.trainer.v1.TrainerService"
TABLE = STORAGE.extended(
    {diffusion_errors.PictureInvalid: InvalidArgument, diffusion_errors.PromptTooLong: InvalidArgument}
)


async def serve(settings: TrainerSettings) -> None:
    """Opens the store, loads the model, takes up what an earlier server left; then serves until SIGTERM."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(Server(settings.server, name="trainer", table=TABLE))
        registry = await stack.enter_async_context(channel(settings.registry))
        store = await asyncio.to_thread(open_fit_store, settings.store, settings.s3)
        stack.callback(store.close)
        # Two workers on one log would each take the other's jobs for lost.
        ledger = await asyncio.to_thread(open_ledger, store, settings.store, TrainerBook(), shards=SHARDS, alone=True)
        stack.push_async_callback(ledger.close)
        model = await asyncio.to_thread(load_model, settings.model)
        metrics = TrainerMetrics(server.metrics)
        desk = Desk(ledger, metrics)
        engine = Engine(model)
        limits = settings.pictures
        terms = LoanTerms(
            limits=PictureLimits(
                max_bytes=limits.max_bytes, max_pixels=limits.max_pixels, min_side_px=limits.min_side_px
            ),
            lifetime=limits.lifetime,
            max_receiving_bytes=limits.max_receiving_bytes,
        )
        pictures = Pictures(desk, store, terms)
        worker = Worker(
            desk,
            pictures,
            Blobs(store),
            engine,
            Publisher(RegistryServiceStub(registry)),
            metrics,
            TABLE,
            base_model=base_model(model.spec),
            max_losses=settings.max_losses,
        )
        servicer = TrainerServicer(model, desk, pictures, JobChecks(model, engine), worker, metrics, server.draining)
        server.add(add_TrainerServiceServicer_to_server, servicer, SERVICE)
        await server.start()
        await worker.start()
        sweeping = asyncio.create_task(pictures.sweep())
        server.mark_ready()
        try:
            await server.run_until_signalled(worker.stop)
            await worker.stop()
        finally:
            sweeping.cancel()
            # Before the ledger closes, which both use.
            await asyncio.wait({sweeping})


if __name__ == "__main__":
    loaded = TrainerSettings.load("trainer")
    configure("trainer", loaded.server.log_level, loaded.server.log_format)
    run("trainer", serve(loaded))
