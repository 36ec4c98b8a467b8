"""The gRPC server: bind, serve, become ready, drain on SIGTERM, stop."""

import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import prometheus_client
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pseudoword.addresses import is_loopback

from rpc.clients import MAX_MESSAGE_BYTES
from rpc.errors import ErrorTable
from rpc.identity import Tokens
from rpc.interceptor import Interceptor
from rpc.metrics import Metrics, new_registry
from rpc.settings import ServerSettings, SettingsError, read_file

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

# Time to send the responses of cancelled rpcs.
_CANCEL_S = 1.0

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Detects clients that have disappeared, and allows our clients' pings (one a minute) on an idle stream.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    # With it, two servers on one port would each get some of the calls.
    ("grpc.so_reuseport", 0),
]


class Health(health.aio.HealthServicer):
    """gRPC's health servicer, whose watches end when the server closes instead of delaying it."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = asyncio.Event()

    async def Watch(self, request: Any, context: Any) -> None:
        watching = asyncio.create_task(super().Watch(request, context))
        closing = asyncio.create_task(self.closing.wait())
        try:
            await asyncio.wait({watching, closing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            closing.cancel()
            await asyncio.wait({watching, closing})


class Server:
    """A gRPC server with health, reflection, metrics and our interceptor.

        async with Server(settings.server, name="registry", table=STORAGE) as server:
            server.add(add_RegistryServicer_to_server, servicer, "pseudoword.registry.v1.Registry")
            await server.start()
            ...
            server.mark_ready()
            await server.run_until_signalled(drain)

    The names for health checks: "", each service, "startup" and "readiness" (SERVING once ready), "liveness" (SERVING
    while the event loop runs).
    """

    def __init__(self, settings: ServerSettings, *, name: str, table: ErrorTable) -> None:
        """Raises SettingsError when a file is unusable, or when a server without tokens would be reachable from other
        machines."""
        if settings.token_file is None and not is_loopback(settings.listen):
            raise SettingsError(
                f"without a token file only loopback is served, and {settings.listen} is not a loopback address:"
                " set server.token_file, or listen on 127.0.0.1"
            )
        self._settings = settings
        self._name = name
        self._log = structlog.get_logger("rpc")
        tokens = None if settings.token_file is None else Tokens(settings.token_file)
        self._credentials = _credentials(settings)
        if tokens is not None and self._credentials is None and not is_loopback(settings.listen):
            self._log.warning("tokens cross the network unencrypted: tls_cert is not set", listen=settings.listen)
        self.metrics = new_registry()
        self._interceptor = Interceptor(table=table, tokens=tokens, metrics=Metrics(self.metrics))
        self._server = grpc.aio.server(interceptors=[self._interceptor], options=_OPTIONS)
        self._health_server: grpc.aio.Server | None = None
        self._metrics_server: Any = None
        self.health = Health()
        self._services: list[str] = []
        self._readying: asyncio.Task[None] | None = None
        self._stopped = False
        self._ending = asyncio.Event()
        self._hurry = asyncio.Event()
        self.draining = asyncio.Event()
        self.port = 0
        self.metrics_port = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop(grace_s=0)

    def add(self, add_servicer_to_server: Callable[[Any, Any], None], servicer: Any, full_service_name: str) -> None:
        """Add a servicer; before start()."""
        add_servicer_to_server(servicer, self._server)
        self._services.append(full_service_name)

    @property
    def address(self) -> str:
        """HOST:PORT of the gRPC port; valid after start()."""
        return _with_port(self._settings.listen, self.port)

    async def start(self) -> None:
        """Bind and serve, without being ready yet. Raises SettingsError when an address cannot be bound."""
        settings = self._settings
        if settings.address_file is not None:
            if not settings.address_file.parent.is_dir():
                raise SettingsError(f"address file {settings.address_file}: its folder does not exist")
            settings.address_file.unlink(missing_ok=True)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        names = (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        await self._set(_NOT_SERVING, "", *self._services, "startup", "readiness")
        await self._set(_SERVING, "liveness")
        self.port = _bind(self._server, settings.listen, self._credentials)
        if settings.health_listen:
            self._health_server = grpc.aio.server(options=_OPTIONS)
            health_pb2_grpc.add_HealthServicer_to_server(self.health, self._health_server)
            _bind(self._health_server, settings.health_listen, None)
            await self._health_server.start()
        if settings.metrics_listen:
            self._start_metrics(settings.metrics_listen)
        await self._server.start()
        self._log.info("listening", address=self.address, tls=self._credentials is not None)

    def mark_ready(self) -> None:
        """Set health to SERVING, then write the address file."""
        self._readying = asyncio.get_running_loop().create_task(self._become_ready())

    async def run_until_signalled(self, drain: Callable[[], Awaitable[None]] | None = None) -> None:
        """Serve until SIGTERM or SIGINT, then stop() with `drain`. A second signal stops without waiting."""
        loop = asyncio.get_running_loop()

        def caught() -> None:
            if self._ending.is_set():
                self._log.warning("second signal, stopping without waiting")
                self._hurry.set()
            self.end()

        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, caught)
        try:
            await self._ending.wait()
            await self.stop(drain)
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def end(self) -> None:
        """Let run_until_signalled continue as after a first signal."""
        self._ending.set()

    async def stop(self, drain: Callable[[], Awaitable[None]] | None = None, *, grace_s: float | None = None) -> None:
        """Set health to NOT_SERVING, await drain(), refuse new rpcs, and let running ones end; all within drain_s (or
        `grace_s`).

        `draining` is set first: endless streams (watches) end themselves when it is set. Rpcs that still run when the
        time is over are cancelled; their clients get UNAVAILABLE, reason SERVER_STOPPING.
        """
        if self._stopped:
            return
        self._stopped = True
        ends = time.monotonic() + (self._settings.drain_s if grace_s is None else grace_s)
        hurry = asyncio.create_task(self._hurry.wait())
        self.draining.set()
        if self._readying is not None:
            await self._readying
        await self._set(_NOT_SERVING, "", *self._services, "readiness")
        if drain is not None:
            await self._drain(asyncio.ensure_future(drain()), hurry, ends)
        self.health.closing.set()
        # stop() is called once: grpc.aio does not support concurrent stops. The rpcs are cancelled below before its
        # grace period is over.
        stopping = asyncio.create_task(self._server.stop(max(0.0, ends - time.monotonic()) + _CANCEL_S))
        await _first(stopping, hurry, ends)
        if not stopping.done():
            self._interceptor.cancel_running()
        await stopping
        hurry.cancel()
        if self._health_server is not None:
            await self._health_server.stop(_CANCEL_S)
        if self._metrics_server is not None:
            await asyncio.to_thread(self._stop_metrics)
        if self._settings.address_file is not None:
            self._settings.address_file.unlink(missing_ok=True)
        self._log.info("stopped")

    async def _drain(self, drained: asyncio.Future[None], hurry: asyncio.Task[Any], ends: float) -> None:
        await _first(drained, hurry, ends)
        if not drained.done():
            self._log.warning("drain did not finish in time", drain_s=self._settings.drain_s)
            drained.cancel()
        try:
            await drained
        except asyncio.CancelledError:
            pass
        except Exception as error:  # a failed drain must not prevent the rpcs from being ended
            self._log.error("drain failed", exc_info=error)

    async def _become_ready(self) -> None:
        if self.draining.is_set():
            return
        await self._set(_SERVING, "", *self._services, "startup", "readiness")
        if self._settings.address_file is not None:
            addresses = {"grpc": self.address}
            if self._metrics_server is not None:
                addresses["metrics"] = _with_port(self._settings.metrics_listen, self.metrics_port)
            _write_whole(self._settings.address_file, json.dumps(addresses) + "\n")
        self._log.info("ready", address=self.address)

    async def _set(self, status: Any, *names: str) -> None:
        for name in names:
            await self.health.set(name, status)

    def _start_metrics(self, listen: str) -> None:
        host, _, port = listen.rpartition(":")
        try:
            self._metrics_server, self._metrics_thread = prometheus_client.start_http_server(
                int(port), addr=host.strip("[]"), registry=self.metrics
            )
        except (OSError, ValueError, OverflowError) as error:
            raise SettingsError(f"metrics cannot be served on {listen}: {error}") from None
        self.metrics_port = self._metrics_server.server_port

    def _stop_metrics(self) -> None:
        self._metrics_server.shutdown()
        self._metrics_server.server_close()
        self._metrics_thread.join()


async def _first(work: asyncio.Future[Any], hurry: asyncio.Task[Any], ends: float) -> None:
    """Wait for `work`, at most until `ends` (monotonic seconds) or until `hurry` is done."""
    timeout = max(0.0, ends - time.monotonic())
    await asyncio.wait({work, hurry}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


def _bind(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        if credentials is None:
            return server.add_insecure_port(listen)
        return server.add_secure_port(listen, credentials)
    except RuntimeError:
        raise SettingsError(
            f"cannot listen on {listen}: the address is in use, or does not belong to this machine"
        ) from None


def _credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    certificate, key = read_file(settings.tls_cert), read_file(settings.tls_key)
    authorities = None if settings.client_ca is None else read_file(settings.client_ca)
    return grpc.ssl_server_credentials([(key, certificate)], authorities, require_client_auth=authorities is not None)


def _with_port(listen: str, port: int) -> str:
    return f"{listen.rpartition(':')[0]}:{port}"


def _write_whole(path: Path, text: str) -> None:
    """Write a file atomically: a reader never sees a part of it."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    Path(temporary).replace(path)
