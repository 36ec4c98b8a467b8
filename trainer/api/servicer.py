"""The rpcs of TrainerService: pictures, jobs, recipes, the base model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

from pseudoword.names import JobName, PictureName, TenantName
from pseudoword.trainer.v1 import resources_pb2, trainer_pb2, trainer_pb2_grpc

from diffusion.conversions import base_model
from diffusion.errors import PictureInvalid
from diffusion.spec import ModelSpec
from rpc.errors import InvalidArgument, Unavailable
from rpc.filters import filtered
from rpc.identity import Role, current_principal
from rpc.pages import Cursor, creation_key, cut, page_size
from rpc.validate import Violations, admitted
from rpc.watchers import wait_for_news
from trainer.api.validation import JobValidator
from trainer.jobs.commands import MoveJob
from trainer.jobs.conversions import picture_of
from trainer.jobs.job_store import Context, JobStore
from trainer.jobs.life_cycle import ENDED, Move
from trainer.jobs.tables import FILTERS, Row
from trainer.metrics import TrainerMetrics
from trainer.pictures.store import PictureStore
from trainer.registry_reader import RegistryReader
from trainer.training.recipe import recipes

# Shortest and longest interval between two previews of a job.
_PREVIEW_INTERVALS_S = (1.0, 3600.0)


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """The rpcs of the trainer. Watches end when `draining` is set."""

    def __init__(
        self,
        spec: ModelSpec,
        job_store: JobStore,
        pictures: PictureStore,
        validator: JobValidator,
        registry: RegistryReader,
        metrics: TrainerMetrics,
        draining: asyncio.Event,
    ) -> None:
        self._spec = spec
        self._job_store = job_store
        self._pictures = pictures
        self._validator = validator
        self._registry = registry
        self._metrics = metrics
        self._draining = draining

    async def UploadPicture(
        self, request_iterator: AsyncIterator[trainer_pb2.UploadPictureRequest], context: Context
    ) -> resources_pb2.Picture:
        """Receives a picture in chunks."""
        try:
            row = await self._pictures.upload(request_iterator, context)
        except (PictureInvalid, InvalidArgument):
            self._metrics.pictures.labels("refused").inc()
            raise
        self._metrics.pictures.labels("taken").inc()
        return picture_of(row)

    async def GetPicture(self, request: trainer_pb2.GetPictureRequest, context: Context) -> resources_pb2.Picture:
        """A picture's metadata."""
        name = admitted(Violations(), PictureName, request.name, "name", Role.READER)
        return picture_of(await self._job_store.picture(str(name)))

    async def DeletePicture(
        self, request: trainer_pb2.DeletePictureRequest, context: Context
    ) -> trainer_pb2.DeletePictureResponse:
        """Deletes a picture and its bytes."""
        name = admitted(Violations(), PictureName, request.name, "name", Role.WRITER)
        await self._pictures.delete(name, request, context)
        return trainer_pb2.DeletePictureResponse()

    async def CreateJob(self, request: trainer_pb2.CreateJobRequest, context: Context) -> resources_pb2.Job:
        """Validates a job, fills in its defaults and queues it."""
        wrong = Violations()
        tenant = admitted(wrong, TenantName, request.parent, "parent", Role.WRITER)
        wrong.request_id(request)
        principal = current_principal()
        if request.job.evaluates:
            subject = await self._registry.subject_of(tenant, request.job, principal.caller, wrong)
            command = self._validator.evaluation(tenant, request.job, principal, wrong, subject=subject)
        else:
            parent = await self._registry.start_of(tenant, request.job, principal.caller, wrong)
            command = self._validator.create(tenant, request.job, principal, wrong, parent=parent)
        row = await self._job_store.commit(tenant.tenant, command, request, context)
        if request.validate_only:
            return self._job_store.message(row, row["revision"])
        # A repeated request returns the job's current state.
        return self._job_store.message(*await self._job_store.row(row["name"], cached=True))

    async def GetJob(self, request: trainer_pb2.GetJobRequest, context: Context) -> resources_pb2.Job:
        """A job's current state."""
        name = admitted(Violations(), JobName, request.name, "name", Role.READER)
        return self._job_store.message(*await self._job_store.row(str(name)))

    async def ListJobs(self, request: trainer_pb2.ListJobsRequest, context: Context) -> trainer_pb2.ListJobsResponse:
        """A tenant's jobs, newest first."""
        wrong = Violations()
        tenant = admitted(wrong, TenantName, request.parent, "parent", Role.READER)
        size = page_size(wrong, request)
        where = filtered(wrong, request, FILTERS)
        wrong.raise_if_any()
        cursor = Cursor.read(request, [int, str])
        after = None if cursor is None else cursor.key
        rows, revision = await self._job_store.page(tenant.tenant, after, size + 1, where)
        jobs = [self._job_store.message(row, revision) for row in rows[:size]]
        jobs, token = cut(rows, jobs, creation_key, request, cursor)
        return trainer_pb2.ListJobsResponse(jobs=jobs, next_page_token=token, revision=str(revision))

    async def WatchJob(
        self, request: trainer_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[trainer_pb2.WatchJobResponse]:
        """The job, then each change and step until it has ended. A slow reader may miss steps and states that did not
        last, but not the current state."""
        wrong = Violations()
        name = str(admitted(wrong, JobName, request.name, "name", Role.READER))
        with ExitStack() as preview_requests:
            if request.HasField("preview_interval"):
                interval_s = request.preview_interval.ToTimedelta().total_seconds()
                wrong.number("preview_interval", interval_s, *_PREVIEW_INTERVALS_S)
                wrong.raise_if_any()
                preview_requests.enter_context(self._job_store.events.previews.wanted(name, interval_s))
            async for event in self._events(name, previews=request.HasField("preview_interval")):
                yield _event(event)

    async def _events(self, name: str, *, previews: bool) -> AsyncIterator[resources_pb2.JobEvent]:
        """The events of a job until it has ended."""
        etag, step, first = "", 0, True
        sent_preview: resources_pb2.JobEvent.Preview | None = None
        with self._job_store.events.watchers.watching(name) as news:
            while not self._draining.is_set():
                news.clear()
                row, revision = await self._job_store.row(name, cached=not first)
                first = False
                job = self._job_store.message(row, revision)
                if job.etag != etag:
                    etag, step = job.etag, job.progress.step
                    yield resources_pb2.JobEvent(job=job)
                elif job.progress.step != step:
                    step = job.progress.step
                    yield resources_pb2.JobEvent(progress=job.progress)
                preview = self._job_store.events.preview(name)
                if previews and preview is not None and preview is not sent_preview:
                    sent_preview = preview
                    yield resources_pb2.JobEvent(preview=preview)
                if row["state"] in ENDED:
                    return
                await wait_for_news(news, self._draining)
        raise Unavailable("the server is stopping; watch again", reason="SERVER_STOPPING")

    async def CancelJob(self, request: trainer_pb2.CancelJobRequest, context: Context) -> resources_pb2.Job:
        """Cancels a queued or running job."""
        row = await self._move(request, Move.CANCEL, context)
        return self._job_store.message(row, row["revision"])

    async def RetryJob(self, request: trainer_pb2.RetryJobRequest, context: Context) -> resources_pb2.Job:
        """Queues a failed or cancelled job again."""
        row = await self._move(request, Move.RETRY, context)
        return self._job_store.message(row, row["revision"])

    async def ListRecipes(
        self, request: trainer_pb2.ListRecipesRequest, context: Context
    ) -> trainer_pb2.ListRecipesResponse:
        """The recipes for the resident model, with every field set."""
        current_principal()
        offered = recipes(self._spec.family)
        return trainer_pb2.ListRecipesResponse(recipes=[offered[name].message() for name in sorted(offered)])

    async def GetBaseModel(
        self, request: trainer_pb2.GetBaseModelRequest, context: Context
    ) -> trainer_pb2.GetBaseModelResponse:
        """The resident model."""
        current_principal()
        spec = self._spec
        return trainer_pb2.GetBaseModelResponse(base_model=base_model(spec), resolution=spec.sample_size_px)

    async def _move(self, request: Any, move: Move, context: Context) -> Row:
        wrong = Violations()
        name = admitted(wrong, JobName, request.name, "name", Role.WRITER)
        wrong.request_id(request)
        wrong.raise_if_any()
        return await self._job_store.commit(
            name.tenant, MoveJob(name=str(name), move=move, etag=request.etag), request, context
        )


def _event(event: resources_pb2.JobEvent) -> trainer_pb2.WatchJobResponse:
    event.event_time.GetCurrentTime()
    return trainer_pb2.WatchJobResponse(event=event)
