"""Watches the registry, so that cached resolutions are never older than its last bookmark."""

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

_BOOKMARK_S = 1  # the shortest interval that the API allows
_SILENCE_TIMEOUT_S = 10.0  # a watch without a message for this long is broken
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0

_logger = structlog.get_logger(__name__)


class RegistryWatch:
    """Invalidates `resolutions` when the registry reports changes."""

    def __init__(
        self,
        registry: "registry_pb2_grpc.RegistryServiceAsyncStub",
        resolutions: ResolutionCache[registry_resources.Version],
    ) -> None:
        self._registry = registry
        self._resolutions = resolutions
        self._token = ""

    async def run(self) -> None:
        """Watches all tenants until cancelled, and resumes after a disconnection; cached resolutions age meanwhile."""
        pause_s = _FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            try:
                await self._watch()
            except TimeoutError:
                _logger.warning("the registry's watch is silent", seconds=_SILENCE_TIMEOUT_S)
            except grpc.aio.AioRpcError as failure:
                error = error_of(failure, "registry")
                _logger.info("the registry's watch was disconnected", reason=error.reason, message=error.message)
                if isinstance(error, OutOfRange):
                    self._token = ""  # another store, or a restored one: nothing that is cached is valid
            if time.monotonic() - began > _LONGEST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    async def _watch(self) -> None:
        request = registry_pb2.WatchEventsRequest(parent="tenants/-", resume_token=self._token)
        request.bookmark_interval.FromSeconds(_BOOKMARK_S)
        call = self._registry.WatchEvents(request)
        try:
            # From here on every change is reported. Without a token, changes before this point were missed.
            async with asyncio.timeout(_SILENCE_TIMEOUT_S):
                await call.initial_metadata()
            if not self._token:
                self._resolutions.reset()
            self._resolutions.disconnected = False
            while True:
                async with asyncio.timeout(_SILENCE_TIMEOUT_S):
                    message = await call.read()
                if not isinstance(message, registry_pb2.WatchEventsResponse):  # grpc.aio.EOF
                    return
                self._apply(message)
        finally:
            self._resolutions.disconnected = True
            call.cancel()

    def _apply(self, message: registry_pb2.WatchEventsResponse) -> None:
        if message.WhichOneof("message") == "event":
            concept = _concept(message.event.resource)
            if concept is not None:
                self._resolutions.invalidate(concept.tenant, concept.concept)
        else:
            # Only a bookmark guarantees that no earlier change is still to be delivered.
            self._resolutions.mark_fresh(time.monotonic())
        self._token = message.resume_token


def _concept(resource: str) -> ConceptName | None:
    """The concept that a resource is or belongs to; None for a tenant."""
    try:
        return ConceptName.parse("/".join(resource.split("/")[:4]))
    except InvalidName:
        return None
