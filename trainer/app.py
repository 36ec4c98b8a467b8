"""The trainer's life: it probes the store, serves, hands its jobs back and closes the ledger."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.json_format import MessageToDict
from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub
from pseudoword.trainer.v1.trainer_pb2_grpc import add_TrainerServiceServicer_to_server

from diffusion import errors as diffusion_errors
from diffusion.checkpoint import BaseModel
from diffusion.conversions import base_model
from diffusion.errors import CheckpointInvalid
from diffusion.loading import load_model, load_vocabulary
from diffusion.pictures import PictureLimits
from diffusion.spec import ModelSpec
from diffusion.threads import in_passing
from diffusion.tokens import PromptTokenizer
from diffusion.vocabulary import Vocabulary
from rpc.app import App
from rpc.clients import channel
from rpc.errors import FailedPrecondition, InvalidArgument
from rpc.server import Server
from rpc.settings import SettingsError
from rpc.storage_errors import STORAGE
from storage.objects.blobs import Blobs
from trainer import errors
from trainer.api.servicer import TrainerServicer
from trainer.api.validation import JobValidator
from trainer.evaluation.judges import JudgeLoader, clip_beside
from trainer.jobs.commands import TenantLimits
from trainer.jobs.job_store import JobStore
from trainer.jobs.state_machine import SHARDS, TrainerStateMachine
from trainer.metrics import TrainerMetrics
from trainer.pictures.store import PictureStore, UploadLimits
from trainer.queue.log_queue import LogQueue
from trainer.registry_reader import RegistryReader
from trainer.settings import TrainerSettings
from trainer.training.start_network import beside, kinds, load
from trainer.worker.checkpoint_store import CheckpointStore
from trainer.worker.completion import JobCompletion
from trainer.worker.engine import Engine
from trainer.worker.job_queue import JobQueue
from trainer.worker.publisher import Publisher
from trainer.worker.task_loader import TaskLoader
from trainer.worker.worker import Worker

if TYPE_CHECKING:
    from trainer.queue.broker import Broker

SERVICE = "pseudoword.trainer.v1.TrainerService"
TABLE = STORAGE.extended(
    {
        diffusion_errors.PictureInvalid: InvalidArgument,
        diffusion_errors.PromptTooLong: InvalidArgument,
        errors.InitializerUnknown: InvalidArgument,
        errors.MaskEmpty: InvalidArgument,
        errors.Diverged: FailedPrecondition,
    }
)


class Trainer(App):
    """A trainer on its store. With the queue in NATS it is one of several processes on one store: servers accept and
    dispatch jobs, workers train them."""

    def __init__(self, settings: TrainerSettings, model: BaseModel | None = None, *, worker: bool = False) -> None:
        """`model` is a model that is already loaded; by default the settings' model is loaded. A `worker` serves no
        clients, only health and metrics. Raises SettingsError."""
        if worker and settings.queue.kind != "jetstream":
            raise SettingsError(
                "a separate worker needs queue.kind jetstream; with queue.kind log the server trains the jobs itself"
            )
        super().__init__(Server(settings.server, name="worker" if worker else "trainer", table=TABLE))
        self._settings = settings
        self._model = model
        self._serves = not worker
        self._trains = worker or settings.queue.kind == "log"
        self._worker: Worker | None = None

    async def _drain(self) -> None:
        if self._worker is not None:
            await self._worker.stop()

    async def _open(self) -> None:
        settings = self._settings
        # With the log as the queue, a second worker would treat the first one's jobs as lost.
        alone = settings.queue.kind == "log"
        state_machine = TrainerStateMachine(_tenant_limits(settings))
        store, ledger = await self._open_ledger(settings.store, settings.s3, state_machine, shards=SHARDS, alone=alone)
        registry = RegistryServiceStub(await self._stack.enter_async_context(channel(settings.registry)))
        reader = RegistryReader(registry)
        metrics = TrainerMetrics(self.server.metrics)
        job_store = JobStore(ledger, metrics)
        pictures = PictureStore(job_store, store, _upload_limits(settings))
        broker = None if alone else _broker(settings)
        if self._trains:
            model = await in_passing(self._load)
            vocabulary = Vocabulary(model.spec, PromptTokenizer(model.tokenizer, model.spec.encoders[0].length))
            engine = await in_passing(lambda: _engine(settings, model))
            completion = JobCompletion(
                job_store, Blobs(store), Publisher(registry, internal_tries=settings.publish_tries), metrics, TABLE
            )
            self._worker = Worker(
                job_store,
                _queue(settings, job_store, completion, broker, model.spec),
                CheckpointStore(job_store, store),
                engine,
                TaskLoader(pictures, reader, vocabulary.tokenizer, base_model(model.spec)),
                completion,
                metrics,
                max_running=settings.engine.max_running,
                # Deficit round robin is fair only if a quantum is at least as large as what one pass grants.
                quantum_rows=max(settings.engine.quantum_rows, settings.engine.max_rows),
                checkpoint_every=settings.engine.checkpoint_every,
                on_crash=self.server.end,
            )
        else:
            vocabulary = await asyncio.to_thread(load_vocabulary, settings.model)
        if broker is not None:
            await self._join_processes(broker, job_store, metrics)
        if self._serves:
            validator = JobValidator(vocabulary, _learned_kinds(settings, vocabulary.spec))
            servicer = TrainerServicer(
                vocabulary.spec, job_store, pictures, validator, reader, metrics, self.server.draining
            )
            self.server.add(add_TrainerServiceServicer_to_server, servicer, SERVICE)
        await self._serve()
        self._stack.push_async_callback(self._drain)
        if self._worker is not None:
            await self._worker.start()
        if self._serves:
            self._run_in_background(pictures.sweep())
        self.server.mark_ready()

    def _load(self) -> BaseModel:
        return self._model or load_model(self._settings.model)

    async def _join_processes(self, broker: "Broker", job_store: JobStore, metrics: TrainerMetrics) -> None:
        """Connects to the other processes, now or as soon as NATS is available."""
        from trainer.queue.dispatcher import Dispatcher
        from trainer.queue.hints import Hints
        from trainer.queue.leadership import Leadership

        hints = Hints(broker, job_store, trains=self._trains)
        broker.open()
        self._stack.push_async_callback(broker.close)
        self._run_in_background(hints.run())
        self._run_in_background(job_store.follow())
        if self._serves:
            queue = self._settings.queue
            leadership = Leadership(broker, "dispatcher", queue.dispatcher_lease)
            self._run_in_background(Dispatcher(broker, job_store, leadership, metrics, ahead=queue.ahead).run())


def _broker(settings: TrainerSettings) -> "Broker":
    try:
        from trainer.queue.broker import Broker  # nats-py is an extra
    except ModuleNotFoundError as error:
        raise SettingsError(f"queue.kind jetstream needs {error.name}: install pseudoword-server[nats]") from None
    return Broker(settings.nats, ack_wait=settings.queue.ack_wait)


def _queue(
    settings: TrainerSettings, job_store: JobStore, completion: JobCompletion, broker: "Broker | None", spec: ModelSpec
) -> JobQueue:
    """The queue that the worker takes its jobs from."""
    if broker is None:
        per_tenant = settings.engine.max_running_per_tenant
        return LogQueue(job_store, completion, max_per_tenant=per_tenant, max_worker_deaths=settings.max_losses)
    from trainer.queue.broker import token_of
    from trainer.queue.jetstream_queue import JetStreamQueue

    base = token_of(MessageToDict(base_model(spec), preserving_proto_field_name=True))
    return JetStreamQueue(broker, job_store, completion, base=base, max_worker_deaths=settings.max_losses)


def _upload_limits(settings: TrainerSettings) -> UploadLimits:
    limits = settings.pictures
    return UploadLimits(
        limits=PictureLimits(max_bytes=limits.max_bytes, max_pixels=limits.max_pixels, min_side_px=limits.min_side_px),
        lifetime=limits.lifetime,
        max_receiving_bytes=limits.max_receiving_bytes,
    )


def _tenant_limits(settings: TrainerSettings) -> TenantLimits:
    """The tenants' limits, as the settings define them."""
    pictures = settings.pictures
    return TenantLimits(
        unfinished=settings.queue.max_unfinished,
        unfinished_per_tenant=settings.queue.max_unfinished_per_tenant,
        picture_bytes_per_tenant=pictures.max_bytes_per_tenant,
        after_success_us=round(pictures.after_success.total_seconds() * 1e6),
        after_failure_us=round(pictures.after_failure.total_seconds() * 1e6),
        follow_ups=settings.evaluation.max_waiting_per_tenant if settings.evaluation.after_publishing else 0,
    )


def _engine(settings: TrainerSettings, model: BaseModel) -> Engine:
    evaluation = settings.evaluation
    folder = _learned_start(settings)
    with _as_settings_error():
        return Engine(
            model,
            max_rows=settings.engine.max_rows,
            checkpoint_activations=settings.engine.checkpoint_activations,
            learned_start=None if folder is None else load(folder, model.spec),
            judges=JudgeLoader(clip=evaluation.clip or clip_beside(settings.model.source), dino=evaluation.dino),
        )


def _learned_start(settings: TrainerSettings) -> Path | None:
    return settings.engine.learned_start or beside(settings.model.source)


def _learned_kinds(settings: TrainerSettings, spec: ModelSpec) -> Sequence[str]:
    folder = _learned_start(settings)
    with _as_settings_error():
        return () if folder is None else kinds(folder, spec)


@contextmanager
def _as_settings_error() -> Iterator[None]:
    try:
        yield
    except CheckpointInvalid as error:
        raise SettingsError(error.message) from None
