"""Publishes versions and evaluations to the registry, exactly once for each job."""

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from pseudoword.names import ConceptName
from pseudoword.registry.v1 import registry_pb2, registry_pb2_grpc
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1 import resources_pb2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from rpc.clients import as_caller, forwarded
from rpc.errors import Aborted, DeadlineExceeded, FailedPrecondition, Internal, Unavailable
from rpc.identity import Principal

_CALL_TIMEOUT_S = 30.0
_logger = structlog.get_logger(__name__)


class Publisher:
    """Publishes versions, and writes evaluations, on behalf of the jobs' creators."""

    def __init__(self, registry: "registry_pb2_grpc.RegistryServiceAsyncStub", *, internal_tries: int) -> None:
        """A call that the registry answers with INTERNAL is tried `internal_tries` times."""
        self._registry = registry
        self._internal_tries = internal_tries

    async def publish(
        self, job: resources_pb2.Job, record: bytes, embedding: bytes, principal: Principal, *, first: bool = False
    ) -> registry_resources.Version:
        """Publishes `embedding` (safetensors) with its `record` (a serialised Version) as the job's version; with
        `first` as its initial version, which is published before training.

        The job is the request id, for which the registry always returns the same version, so a retry is harmless.
        Retries while the registry is unavailable. Raises the registry's refusals, and FailedPrecondition
        (PUBLISH_FAILED) when it has answered INTERNAL `internal_tries` times.
        """
        version = registry_resources.Version.FromString(record)
        name = ConceptName.parse(job.concept)
        request = registry_pb2.PublishVersionRequest(
            parent=job.concept,
            version=version,
            embedding=embedding,
            create_concept=True,
            concept=registry_resources.Concept(name=str(name), kind=job.kind),
            request_id=job.name.rsplit("/", 1)[1] + ("-first" if first else ""),
        )
        published: registry_resources.Version = await self._call(
            self._registry.PublishVersion, request, principal, "publish the version"
        )
        return published

    async def evaluate(
        self, job: resources_pb2.Job, record: bytes, principal: Principal
    ) -> registry_resources.Evaluation:
        """Writes `record` (a serialised Evaluation) below the version that the job evaluates. Retries and raises as
        `publish`."""
        own = job.name.rsplit("/", 1)[1]
        request = registry_pb2.CreateEvaluationRequest(
            parent=job.evaluates,
            evaluation_id=own,
            evaluation=registry_resources.Evaluation.FromString(record),
            request_id=own,
        )
        written: registry_resources.Evaluation = await self._call(
            self._registry.CreateEvaluation, request, principal, "write the evaluation"
        )
        return written

    async def _call(self, call: Callable[..., Awaitable[Any]], request: Any, principal: Principal, what: str) -> Any:
        retrying = AsyncRetrying(
            retry=retry_if_exception(_RetryBudget(self._internal_tries).allows),
            wait=wait_random_exponential(multiplier=0.2, max=30),
            before_sleep=_log_retry,
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt, forwarded("registry"):
                    return await call(request, metadata=as_caller(principal), timeout=_CALL_TIMEOUT_S)
        except Internal as error:
            raise FailedPrecondition(
                f"the registry could not {what} in {self._internal_tries} attempts; its last error: {error.message};"
                " retry the job once the registry works again",
                reason="PUBLISH_FAILED",
                metadata={"attempts": str(self._internal_tries), **error.metadata},
            ) from error
        raise AssertionError("unreachable: the last error is raised again")


class _RetryBudget:
    """Allows a retry for as long as the registry is unavailable, and after INTERNAL a limited number of times."""

    def __init__(self, internal_tries: int) -> None:
        self._left = internal_tries

    def allows(self, error: BaseException) -> bool:
        if isinstance(error, Internal):
            self._left -= 1
            return self._left > 0
        return isinstance(error, (Unavailable, DeadlineExceeded, Aborted))


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    _logger.warning("publishing is retried", attempt=state.attempt_number, error=str(error))
