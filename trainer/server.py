"""The trainer's life, from an unproven store to a job handed back and a closed ledger."""

import asyncio
from contextlib import AsyncExitStack

from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub
from pseudoword.trainer.v1.trainer_pb2_grpc import add_TrainerServiceServicer_to_server

from diffusion import errors as diffusion_errors
from diffusion.checkpoint import BaseModel, ModelSpec
from diffusion.errors import CheckpointInvalid
from diffusion.messages import base_model
from diffusion.pictures import PictureLimits
from diffusion.settings import load_model
from rpc.clients import channel
from rpc.errors import InvalidArgument
from rpc.server import Server
from rpc.settings import SettingsError
from rpc.stores import end_when_replaced, open_fit_store, open_ledger
from rpc.table import STORAGE
from storage.blobs import Blobs
from trainer.book import SHARDS, Terms, TrainerBook
from trainer.checkpoints import Checkpoints
from trainer.checks import JobChecks
from trainer.desk import Desk
from trainer.endings import Endings
from trainer.engine import Engine
from trainer.learned.network import StartNetwork, beside, load
from trainer.metrics import TrainerMetrics
from trainer.pictures import LoanTerms, Pictures
from trainer.publisher import Publisher
from trainer.queue.log_queue import LogQueue
from trainer.rpcs import TrainerServicer
from trainer.settings import TrainerSettings
from trainer.versions import Versions
from trainer.worker import Worker

SERVICE = "pseudoword.trainer.v1.TrainerService"
TABLE = STORAGE.extended(
    {diffusion_errors.PictureInvalid: InvalidArgument, diffusion_errors.PromptTooLong: InvalidArgument}
)


class Trainer:
    """A trainer on its store.

    async with Trainer(settings) as trainer:
        await trainer.run_until_signalled()         # it serves at trainer.server.address
    """

    def __init__(self, settings: TrainerSettings, model: BaseModel | None = None) -> None:
        """`model` is one that is loaded already. Raises SettingsError."""
        self._settings = settings
        self._model = model
        self._stack = AsyncExitStack()
        self.server = Server(settings.server, name="trainer", table=TABLE)

    async def __aenter__(self) -> "Trainer":
        """Opens the store, loads the model, takes up what an earlier server left, serves. Raises SettingsError."""
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def run_until_signalled(self) -> None:
        """Serves until SIGTERM, then hands the running jobs back. Raises what the worker has died of, if it has, and
        StoreReplaced when its store was replaced under it."""
        await self.server.run_until_signalled(self._worker.stop)
        self._ledger.refuse_replaced()
        await self._worker.stop()

    async def _open(self) -> None:
        settings, limits = self._settings, self._settings.pictures
        # Entered here, left in the opposite order: the ledger closes when nobody uses it any more.
        store = await asyncio.to_thread(open_fit_store, settings.store, settings.s3)
        self._stack.callback(store.close)
        # Two workers on one log would each take the other's jobs for lost.
        kept = TrainerBook(_terms(settings))
        ledger = await asyncio.to_thread(open_ledger, store, settings.store, kept, shards=SHARDS, alone=True)
        self._ledger = ledger
        self._stack.push_async_callback(ledger.close)
        registry = await self._stack.enter_async_context(channel(settings.registry))
        model = self._model if self._model is not None else await asyncio.to_thread(load_model, settings.model)
        metrics = TrainerMetrics(self.server.metrics)
        desk = Desk(ledger, metrics)
        terms = LoanTerms(
            limits=PictureLimits(
                max_bytes=limits.max_bytes, max_pixels=limits.max_pixels, min_side_px=limits.min_side_px
            ),
            lifetime=limits.lifetime,
            max_receiving_bytes=limits.max_receiving_bytes,
        )
        pictures = Pictures(desk, store, terms)
        engine = Engine(
            model,
            max_rows=settings.engine.max_rows,
            checkpoint_activations=settings.engine.checkpoint_activations,
            learned_start=_learned_start(settings, model.spec),
        )
        versions = Versions(RegistryServiceStub(registry))
        publisher = Publisher(RegistryServiceStub(registry), internal_tries=settings.publish_tries)
        endings = Endings(desk, Blobs(store), publisher, metrics, TABLE)
        self._worker = Worker(
            desk,
            LogQueue(
                desk,
                endings,
                max_per_tenant=settings.engine.max_running_per_tenant,
                max_losses=settings.max_losses,
            ),
            pictures,
            Checkpoints(desk, store),
            engine,
            versions,
            endings,
            metrics,
            base_model=base_model(model.spec),
            max_running=settings.engine.max_running,
            quantum_rows=settings.engine.quantum_rows,
            checkpoint_every=settings.engine.checkpoint_every,
        )
        servicer = TrainerServicer(
            model, desk, pictures, JobChecks(model, engine), versions, metrics, self.server.draining
        )
        self.server.add(add_TrainerServiceServicer_to_server, servicer, SERVICE)
        await self.server.start()
        self._stack.push_async_callback(self.server.stop, grace_s=0)
        await self._worker.start()
        self._stack.push_async_callback(self._worker.stop)
        sweeping = asyncio.create_task(pictures.sweep())
        self._stack.push_async_callback(_ended, sweeping)
        minding = asyncio.create_task(end_when_replaced(self.server, ledger))
        self._stack.push_async_callback(_ended, minding)
        self.server.mark_ready()


def _terms(settings: TrainerSettings) -> Terms:
    """What the settings promise to tenants."""
    pictures = settings.pictures
    return Terms(
        unfinished=settings.queue.max_unfinished,
        unfinished_per_tenant=settings.queue.max_unfinished_per_tenant,
        picture_bytes_per_tenant=pictures.max_bytes_per_tenant,
        after_success_us=round(pictures.after_success.total_seconds() * 1e6),
        after_failure_us=round(pictures.after_failure.total_seconds() * 1e6),
    )


def _learned_start(settings: TrainerSettings, spec: ModelSpec) -> StartNetwork | None:
    folder = settings.engine.learned_start or beside(settings.model.source)
    try:
        return None if folder is None else load(folder, spec)
    except CheckpointInvalid as error:
        raise SettingsError(error.message) from None


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
