"""Listens to the registry, so that what is kept of words is never older than the last message."""

import asyncio
import time

import grpc
import structlog
from pseudoword.names import ConceptName, InvalidName
from pseudoword.registry.v1 import registry_pb2, registry_pb2_grpc
from pseudoword.registry.v1 import resources_pb2 as registry_resources

from rpc.clients import error_of
from rpc.errors import OutOfRange
from service.words.resolution_cache import ResolutionCache

_BOOKMARK_S = 1  # the least that the contract allows
_SILENCE_S = 10.0  # a watch without even a bookmark for so long is dead
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0

_logger = structlog.get_logger(__name__)


class RegistryWatch:
    """Tells `meanings` what changes. `run` until it is cancelled."""

    def __init__(
        self,
        registry: "registry_pb2_grpc.RegistryServiceAsyncStub",
        resolutions: ResolutionCache[registry_resources.Version],
    ) -> None:
        self._registry = registry
        self._resolutions = resolutions
        self._token = ""

    async def run(self) -> None:
        """Watches all tenants, resuming after every break; what is kept only ages meanwhile."""
        pause_s = _FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            try:
                await self._listen()
            except TimeoutError:
                _logger.warning("the registry's watch is silent", seconds=_SILENCE_S)
            except grpc.aio.AioRpcError as failure:
                error = error_of(failure, "registry")
                _logger.info("the registry's watch broke off", reason=error.reason, message=error.message)
                if isinstance(error, OutOfRange):
                    self._token = ""  # another store, or one that was put back: nothing kept of it holds
            if time.monotonic() - began > _LONGEST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    async def _listen(self) -> None:
        request = registry_pb2.WatchEventsRequest(parent="tenants/-", resume_token=self._token)
        request.bookmark_interval.FromSeconds(_BOOKMARK_S)
        call = self._registry.WatchEvents(request)
        try:
            # From here on every change is told; without a token there is a gap before it.
            async with asyncio.timeout(_SILENCE_S):
                await call.initial_metadata()
            if not self._token:
                self._resolutions.reset()
            self._resolutions.disconnected = False
            while True:
                async with asyncio.timeout(_SILENCE_S):
                    message = await call.read()
                if not isinstance(message, registry_pb2.WatchEventsResponse):  # grpc.aio.EOF
                    return
                self._tell(message)
        finally:
            self._resolutions.disconnected = True
            call.cancel()

    def _tell(self, message: registry_pb2.WatchEventsResponse) -> None:
        if message.WhichOneof("message") == "event":
            concept = _concept(message.event.resource)
            if concept is not None:
                self._resolutions.invalidate(concept.tenant, concept.concept)
        else:
            # Only a bookmark says that nothing else is on its way.
            self._resolutions.mark_fresh(time.monotonic())
        self._token = message.resume_token


def _concept(resource: str) -> ConceptName | None:
    """The concept that a resource is or belongs to; None for a tenant."""
    try:
        return ConceptName.parse("/".join(resource.split("/")[:4]))
    except InvalidName:
        return None
