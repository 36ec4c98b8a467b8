"""Reads existing versions, to start from or to evaluate, from the registry on behalf of the job's creator."""

import numpy as np
from pseudoword.names import InvalidName, TenantName, VersionName
from pseudoword.registry.v1 import registry_pb2, registry_pb2_grpc
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1 import resources_pb2
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from rpc.clients import as_caller, forwarded
from rpc.errors import DeadlineExceeded, NotFound, Unavailable
from rpc.identity import Principal
from rpc.validate import Violations
from storage.tensors import read_tensors

_CALL_TIMEOUT_S = 10.0


class RegistryReader:
    """Reads versions and their vectors from the registry."""

    def __init__(self, registry: "registry_pb2_grpc.RegistryServiceAsyncStub") -> None:
        self._registry = registry

    async def start_of(
        self, tenant: TenantName, job: resources_pb2.Job, caller: Principal, wrong: Violations
    ) -> registry_resources.Version | None:
        """The version that a job starts from. None if the job starts from no version, or if the version is unusable;
        the reason is then added to `wrong`.

        Raises the registry's refusals, and Unavailable.
        """
        if job.start.WhichOneof("start") != "version":
            return None
        return await self._owned(tenant, job.start.version, "job.start.version", caller, wrong)

    async def subject_of(
        self, tenant: TenantName, job: resources_pb2.Job, caller: Principal, wrong: Violations
    ) -> tuple[registry_resources.Version, registry_resources.Concept] | None:
        """The version that a job evaluates, and its concept; None and errors as in `start_of`."""
        version = await self._owned(tenant, job.evaluates, "job.evaluates", caller, wrong)
        if version is None:
            return None
        name = str(VersionName.parse(version.name).parent)
        with forwarded("registry"):
            concept: registry_resources.Concept = await self._registry.GetConcept(
                registry_pb2.GetConceptRequest(name=name), metadata=as_caller(caller), timeout=_CALL_TIMEOUT_S
            )
        return version, concept

    async def _owned(
        self, tenant: TenantName, name: str, field: str, caller: Principal, wrong: Violations
    ) -> registry_resources.Version | None:
        try:
            if VersionName.parse(name).tenant != tenant.tenant:
                wrong.add(field, f"must belong to {tenant}")
                return None
        except InvalidName as error:
            wrong.add(field, str(error))
            return None
        try:
            with forwarded("registry"):
                version: registry_resources.Version = await self._registry.GetVersion(
                    registry_pb2.GetVersionRequest(name=name), metadata=as_caller(caller), timeout=_CALL_TIMEOUT_S
                )
        except NotFound as error:
            wrong.add(field, error.message)
            return None
        return version

    async def vectors(self, name: str, caller: Principal) -> np.ndarray:
        """fp32 [vectors, dims] of a version. Retries while the registry is unavailable; raises its refusals."""
        request = registry_pb2.GetEmbeddingRequest(name=name, format=registry_pb2.EMBEDDING_FORMAT_NATIVE)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((Unavailable, DeadlineExceeded)),
            wait=wait_random_exponential(multiplier=0.2, max=30),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt, forwarded("registry"):
                answer = await self._registry.GetEmbedding(request, metadata=as_caller(caller), timeout=_CALL_TIMEOUT_S)
        (vectors,) = read_tensors(answer.data).values()
        return vectors
