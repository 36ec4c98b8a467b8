"""The Python client: learns words and draws them.

    with Client() as client:
        version = client.learn("rex", [Path("1.png"), Path("2.png"), Path("3.png"), Path("4.png")])
        picture, = client.draw("a photo of <rex> on the beach", seed=7)
        picture.save(Path("rex.png"))

For rpcs without a method, call the three stubs (`registry`, `trainer`, `generation`) directly; wrap such calls in
`errors()` of pseudoword.calls to get PseudowordError instead of grpc.RpcError. A client may be shared between threads.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from datetime import timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Self

import grpc

from pseudoword.calls import errors, pages, patient
from pseudoword.channel import Endpoints, connect
from pseudoword.errors import PseudowordError
from pseudoword.generation.v1 import generation_pb2, generation_pb2_grpc
from pseudoword.generation.v1 import resources_pb2 as generation_resources
from pseudoword.names import AliasName, ConceptName, TenantName, VersionName, WordRef
from pseudoword.picture import Picture, pictures
from pseudoword.registry.v1 import registry_pb2, registry_pb2_grpc
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1 import resources_pb2 as trainer_resources
from pseudoword.trainer.v1 import trainer_pb2, trainer_pb2_grpc

CHUNK_BYTES = 256 * 2**10
_STATE = trainer_resources.Job.State
_BATCH = generation_resources.Batch
BATCH_ENDED = frozenset({_BATCH.STATE_SUCCEEDED, _BATCH.STATE_FAILED, _BATCH.STATE_CANCELLED})
ENDED = frozenset({_STATE.STATE_SUCCEEDED, _STATE.STATE_FAILED, _STATE.STATE_CANCELLED})


class Client:
    """A connection to the three servers, for one tenant.

    Every method raises PseudowordError when a server refuses the call or is unavailable.
    """

    def __init__(self, endpoints: Endpoints | None = None, *, tenant: str = "default") -> None:
        self.tenant = TenantName.parse(f"tenants/{tenant}")
        endpoints = endpoints or Endpoints()
        self._channels = ExitStack()
        registry, trainer, generation = (
            self._channels.enter_context(connect(address, endpoints))
            for address in (endpoints.registry, endpoints.trainer, endpoints.generation)
        )
        self.registry = registry_pb2_grpc.RegistryServiceStub(registry)
        self.trainer = trainer_pb2_grpc.TrainerServiceStub(trainer)
        self.generation = generation_pb2_grpc.GenerationServiceStub(generation)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._channels.close()

    # Learning

    def upload(self, picture: Path | bytes) -> trainer_resources.Picture:
        """Upload one picture (PNG, JPEG, WebP, HEIC or AVIF). The same bytes give the same resource."""
        data = picture if isinstance(picture, bytes) else picture.read_bytes()
        header = trainer_pb2.UploadPictureRequest.Header(
            parent=str(self.tenant), size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
        )

        def messages() -> Iterator[trainer_pb2.UploadPictureRequest]:
            yield trainer_pb2.UploadPictureRequest(header=header)
            for start in range(0, len(data), CHUNK_BYTES):
                yield trainer_pb2.UploadPictureRequest(chunk=data[start : start + CHUNK_BYTES])

        with errors():
            return self.trainer.UploadPicture(messages())

    def create_job(
        self,
        concept: str,
        pictures: Iterable[Path | bytes],
        *,
        kind: "registry_resources.ConceptKind.ValueType" = registry_resources.CONCEPT_KIND_OBJECT,
        start: str | trainer_resources.Start | None = None,
        vectors: int = 0,
        seed: int = 0,
        recipe: trainer_resources.Recipe | None = None,
        masks: Iterable[Path | bytes | None] = (),
        at_once: bool = False,
        request_id: str | None = None,
    ) -> trainer_resources.Job:
        """Upload the pictures and create the job that learns `<concept>` from them.

        `start` is a word of the vocabulary to start from, such as "dog", or another Start; `vectors` 0: one, or the
        number of vectors of the version to start from. `masks`, one per picture or none at all, are white where the
        object is. With `at_once` the learned start is published as a first version before training, and the refined
        version after it. The call is idempotent by `request_id`.
        """
        job = trainer_resources.Job(
            concept=str(self.concept(concept)),
            kind=kind,
            examples=self._examples(pictures, masks),
            start=trainer_resources.Start(words=start) if isinstance(start, str) else start,
            vectors=vectors,
            seed=seed,
            recipe=recipe,
            word_at_once=at_once,
        )
        return self._create(job, request_id)

    def create_evaluation(
        self,
        version: str,
        pictures: Iterable[Path | bytes],
        *,
        seed: int = 0,
        masks: Iterable[Path | bytes | None] = (),
        request_id: str | None = None,
    ) -> trainer_resources.Job:
        """Upload the pictures and create the job that evaluates a version, by its resource name, on them. Pictures that
        the version was not trained on measure it best. `masks` and `request_id` as in create_job."""
        job = trainer_resources.Job(evaluates=version, examples=self._examples(pictures, masks), seed=seed)
        return self._create(job, request_id)

    def _examples(
        self, pictures: Iterable[Path | bytes], masks: Iterable[Path | bytes | None]
    ) -> list[trainer_resources.Example]:
        return [
            trainer_resources.Example(
                picture=self.upload(picture).name, mask=self.upload(mask).name if mask is not None else ""
            )
            for picture, mask in zip_longest(pictures, masks)
        ]

    def _create(self, job: trainer_resources.Job, request_id: str | None) -> trainer_resources.Job:
        request = trainer_pb2.CreateJobRequest(
            parent=str(self.tenant), job=job, request_id=request_id or str(uuid.uuid4())
        )
        with errors():
            return self.trainer.CreateJob(request)

    def watch_job(
        self, name: str, *, preview_interval: timedelta | None = None, patience_s: float = 60.0
    ) -> Iterator[trainer_resources.JobEvent]:
        """The events of a job until it has ended, with a preview every `preview_interval`. Reconnects while the trainer
        is unavailable, up to `patience_s`."""
        request = trainer_pb2.WatchJobRequest(name=name)
        if preview_interval is not None:
            request.preview_interval.FromTimedelta(preview_interval)
        for message in patient(lambda: self.trainer.WatchJob(request), patience_s):
            yield message.event
            if message.event.WhichOneof("event") == "job" and message.event.job.state in ENDED:
                return

    def learn(
        self,
        concept: str,
        pictures: Iterable[Path | bytes],
        *,
        kind: "registry_resources.ConceptKind.ValueType" = registry_resources.CONCEPT_KIND_OBJECT,
        start: str | trainer_resources.Start | None = None,
        vectors: int = 0,
        seed: int = 0,
        recipe: trainer_resources.Recipe | None = None,
        masks: Iterable[Path | bytes | None] = (),
        at_once: bool = False,
        on_event: Callable[[trainer_resources.JobEvent], None] | None = None,
    ) -> registry_resources.Version:
        """Learn `<concept>` and return its new version. Raises PseudowordError also for a job that fails or is
        cancelled. With `at_once`, the job in an event names its first version as soon as that is published."""
        job = self.create_job(
            concept,
            pictures,
            kind=kind,
            start=start,
            vectors=vectors,
            seed=seed,
            recipe=recipe,
            masks=masks,
            at_once=at_once,
        )
        return self.version(published(self._ended(job, on_event)))

    def evaluate(
        self,
        word: str,
        pictures: Iterable[Path | bytes],
        *,
        seed: int = 0,
        masks: Iterable[Path | bytes | None] = (),
        on_event: Callable[[trainer_resources.JobEvent], None] | None = None,
    ) -> registry_resources.Evaluation:
        """Evaluate the version that `concept[@alias|@n]` means now on the pictures, and return the stored figures.
        Raises PseudowordError also for a job that fails or is cancelled."""
        job = self.create_evaluation(self.resolve(word).name, pictures, seed=seed, masks=masks)
        return self.evaluation(published(self._ended(job, on_event)))

    def _ended(
        self, job: trainer_resources.Job, on_event: Callable[[trainer_resources.JobEvent], None] | None
    ) -> trainer_resources.Job:
        for event in self.watch_job(job.name):
            if on_event is not None:
                on_event(event)
            if event.WhichOneof("event") == "job":
                job = event.job
        return job

    def jobs(self, filter: str = "") -> Iterator[trainer_resources.Job]:
        """The tenant's jobs, newest first. `filter`: AIP-160, with state, concept, evaluates, creator, create_time."""
        request = trainer_pb2.ListJobsRequest(parent=str(self.tenant), filter=filter)
        for page in pages(self.trainer.ListJobs, request):
            yield from page.jobs

    def retry_job(self, name: str) -> trainer_resources.Job:
        """Queue a failed or cancelled job again."""
        with errors():
            return self.trainer.RetryJob(trainer_pb2.RetryJobRequest(name=name, request_id=str(uuid.uuid4())))

    def cancel_job(self, name: str) -> trainer_resources.Job:
        with errors():
            return self.trainer.CancelJob(trainer_pb2.CancelJobRequest(name=name, request_id=str(uuid.uuid4())))

    # Drawing

    def generate(
        self,
        settings: generation_resources.PictureSettings,
        *,
        count: int = 1,
        format: "generation_resources.PictureFormat.ValueType" = generation_resources.PICTURE_FORMAT_PNG,
        preview_every: int = 0,
        max_staleness: timedelta | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[generation_pb2.GenerateResponse]:
        """The events of one request, as they arrive. Closing the iterator cancels the request.

        `max_staleness`: for this long, an alias that was moved may still resolve to its previous version. None: the
        server's default (about a second); zero: the registry is always asked.
        """
        request = generation_pb2.GenerateRequest(
            parent=str(self.tenant), settings=settings, count=count, format=format, preview_every=preview_every
        )
        if max_staleness is not None:
            request.max_staleness.FromTimedelta(max_staleness)
        with errors():
            call = self.generation.Generate(request, timeout=timeout_s)
            try:
                yield from call
            finally:
                call.cancel()

    def draw(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        seed: int = 0,
        steps: int | None = None,
        guidance_scale: float | None = None,
        scheduler: str = "",
        width: int | None = None,
        height: int | None = None,
        count: int = 1,
        exact: bool = True,
        max_staleness: timedelta | None = None,
        timeout_s: float | None = None,
    ) -> list[Picture]:
        """Draw a prompt, in which `<concept>` is a word. With `exact`, the same arguments give the same files."""
        settings = generation_resources.PictureSettings(
            prompt=prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            steps=steps,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            width=width,
            height=height,
            exact=exact,
        )
        return pictures(self.generate(settings, count=count, max_staleness=max_staleness, timeout_s=timeout_s))

    # Batches

    def create_batch(
        self, batch: generation_resources.Batch, *, request_id: str | None = None, validate_only: bool = False
    ) -> generation_resources.Batch:
        """Start a batch: many pictures, drawn into the server's object store. The call is idempotent by `request_id`;
        with `validate_only` the batch is validated and not started."""
        request = generation_pb2.CreateBatchRequest(
            parent=str(self.tenant),
            batch=batch,
            request_id=request_id or str(uuid.uuid4()),
            validate_only=validate_only,
        )
        with errors():
            return self.generation.CreateBatch(request)

    def batch(self, name: str) -> generation_resources.Batch:
        """One batch by its resource name."""
        with errors():
            return self.generation.GetBatch(generation_pb2.GetBatchRequest(name=name))

    def batches(self, *, filter: str = "") -> Iterator[generation_resources.Batch]:
        """The tenant's batches, newest first, without their prompts. `filter`: AIP-160."""
        request = generation_pb2.ListBatchesRequest(parent=str(self.tenant), filter=filter)
        for page in pages(self.generation.ListBatches, request):
            yield from page.batches

    def watch_batch(self, name: str, *, patience_s: float = 60.0) -> Iterator[generation_resources.Batch]:
        """A batch whenever it has changed, until it has ended. Reconnects while the server is unavailable, up to
        `patience_s`."""
        request = generation_pb2.WatchBatchRequest(name=name)
        for message in patient(lambda: self.generation.WatchBatch(request), patience_s):
            yield message.batch
            if message.batch.state in BATCH_ENDED:
                return

    def cancel_batch(self, name: str) -> generation_resources.Batch:
        """Cancel a batch; finished pictures are kept."""
        with errors():
            return self.generation.CancelBatch(
                generation_pb2.CancelBatchRequest(name=name, request_id=str(uuid.uuid4()))
            )

    # The registry

    def concept(self, concept: str) -> ConceptName:
        """The resource name of a concept of this tenant. Raises InvalidName."""
        return ConceptName.parse(f"{self.tenant}/concepts/{concept}")

    def alias(self, concept: str, alias: str) -> AliasName:
        """The resource name of an alias of this tenant. Raises InvalidName."""
        return AliasName.parse(f"{self.concept(concept)}/aliases/{alias}")

    def words(self) -> Iterator[registry_resources.Concept]:
        """All concepts of the tenant, sorted by name."""
        request = registry_pb2.ListConceptsRequest(parent=str(self.tenant))
        for page in pages(self.registry.ListConcepts, request):
            yield from page.concepts

    def versions(self, concept: str) -> Iterator[registry_resources.Version]:
        """All versions of a concept, newest first."""
        request = registry_pb2.ListVersionsRequest(parent=str(self.concept(concept)))
        for page in pages(self.registry.ListVersions, request):
            yield from page.versions

    def version(self, name: str) -> registry_resources.Version:
        """One version by its resource name, with its loss curve and recipe."""
        with errors():
            return self.registry.GetVersion(registry_pb2.GetVersionRequest(name=name))

    def evaluation(self, name: str) -> registry_resources.Evaluation:
        """One evaluation by its resource name."""
        with errors():
            return self.registry.GetEvaluation(registry_pb2.GetEvaluationRequest(name=name))

    def evaluations(self, version: str) -> Iterator[registry_resources.Evaluation]:
        """All evaluations of a version, by its resource name, newest first."""
        request = registry_pb2.ListEvaluationsRequest(parent=version)
        for page in pages(self.registry.ListEvaluations, request):
            yield from page.evaluations

    def resolve(self, word: str) -> registry_resources.Version:
        """The version that `[tenant/]concept[@alias|@n]` means now, with its loss curve and recipe."""
        request = registry_pb2.ResolveWordsRequest(parent=str(self.tenant), words=[str(WordRef.parse(word))])
        with errors():
            resolved = self.registry.ResolveWords(request).words[0]
        if resolved.WhichOneof("result") == "error":
            raise PseudowordError.from_status(resolved.error)
        return self.version(resolved.version.name)

    def embedding(
        self,
        version: str,
        *,
        format: "registry_pb2.EmbeddingFormat.ValueType" = registry_pb2.EMBEDDING_FORMAT_DIFFUSERS,
    ) -> registry_pb2.GetEmbeddingResponse:
        """A version's vectors as a file."""
        request = registry_pb2.GetEmbeddingRequest(name=version, format=format, reader=str(self.tenant))
        with errors():
            return self.registry.GetEmbedding(request)

    def import_version(
        self,
        concept: str,
        data: bytes,
        *,
        format: "registry_pb2.EmbeddingFormat.ValueType" = registry_pb2.EMBEDDING_FORMAT_UNSPECIFIED,
        description: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> registry_resources.Version:
        """Publish another program's file as the next version of a concept; the concept is created if it is missing."""
        request = registry_pb2.ImportVersionRequest(
            parent=str(self.concept(concept)),
            data=data,
            format=format,
            description=description,
            labels=labels,
            create_concept=True,
            request_id=str(uuid.uuid4()),
        )
        with errors():
            return self.registry.ImportVersion(request)

    def set_alias(
        self, concept: str, alias: str, version: int, *, etag: str = "", reason: str = ""
    ) -> registry_resources.Alias:
        """Point an alias to a version; with an etag, only if the alias has not changed since it was read."""
        owner = self.concept(concept)
        request = registry_pb2.SetAliasRequest(
            alias=registry_resources.Alias(
                name=str(self.alias(concept, alias)),
                version=str(VersionName(owner.tenant, owner.concept, version)),
                etag=etag,
            ),
            reason=reason,
            request_id=str(uuid.uuid4()),
        )
        with errors():
            return self.registry.SetAlias(request)

    def rollback_alias(self, concept: str, alias: str, *, reason: str = "") -> registry_resources.Alias:
        """Point an alias back to the version before its last move."""
        request = registry_pb2.RollbackAliasRequest(
            name=str(self.alias(concept, alias)), reason=reason, request_id=str(uuid.uuid4())
        )
        with errors():
            return self.registry.RollbackAlias(request)

    def delete_alias(self, concept: str, alias: str, *, reason: str = "") -> None:
        """Delete an alias; its history is kept."""
        request = registry_pb2.DeleteAliasRequest(
            name=str(self.alias(concept, alias)), reason=reason, request_id=str(uuid.uuid4())
        )
        with errors():
            self.registry.DeleteAlias(request)

    def alias_changes(self, concept: str, alias: str) -> Iterator[registry_resources.AliasChange]:
        """The moves of an alias, newest first."""
        request = registry_pb2.ListAliasChangesRequest(parent=str(self.alias(concept, alias)))
        for page in pages(self.registry.ListAliasChanges, request):
            yield from page.changes

    def watch(self, *, resume_token: str = "", patience_s: float = 60.0) -> Iterator[registry_pb2.WatchEventsResponse]:
        """All events of the tenant from now on, or after `resume_token`, each exactly once. Reconnects while the
        registry is unavailable, up to `patience_s`."""
        request = registry_pb2.WatchEventsRequest(parent=str(self.tenant), resume_token=resume_token)
        for message in patient(lambda: self.registry.WatchEvents(request), patience_s):
            request.resume_token = message.resume_token
            yield message


def published(job: trainer_resources.Job) -> str:
    """The version that a completed job has published, or the evaluation that it has written. Raises PseudowordError for
    a failed or cancelled job."""
    if job.state == _STATE.STATE_SUCCEEDED:
        return job.evaluation or job.version
    if job.state == _STATE.STATE_FAILED:
        raise PseudowordError.from_status(job.error)
    raise PseudowordError(code=grpc.StatusCode.CANCELLED, message=f"{job.name} was cancelled", reason="JOB_CANCELLED")
