"""Calls from one pseudoword server to another: address, token, TLS, and the caller that it acts for."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_status import rpc_status
from pseudoword.addresses import is_loopback, proxy_options
from pydantic import BaseModel, Field, SecretStr

from rpc import errors
from rpc.identity import ON_BEHALF_OF, Principal, to_json
from rpc.settings import SettingsError, read_file

MAX_MESSAGE_BYTES = 16 * 2**20

# Retries are safe: every unary call is a read, or carries a request id that makes it idempotent.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2.5,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "loadBalancingConfig": [{"round_robin": {}}],
}


class Peer(BaseModel, frozen=True, extra="forbid"):
    """Another server and the credentials for it."""

    address: str = Field(description="HOST:PORT, or a dns:/// name that resolves to every replica")
    token_file: Path | None = Field(default=None, description="File with the bearer token for this server")
    token: SecretStr | None = Field(default=None, description="The bearer token itself; token_file is safer")
    ca: Path | None = Field(
        default=None, description="PEM file of certificate authorities to verify the server with; switches TLS on"
    )

    def bearer(self) -> str | None:
        """The token, or None when none is set. Raises SettingsError when the file cannot be read."""
        if self.token is not None:
            return self.token.get_secret_value()
        return None if self.token_file is None else read_file(self.token_file).decode().strip()


def channel(peer: Peer) -> grpc.aio.Channel:
    """A channel that balances calls over the peer's replicas, retries UNAVAILABLE, and sends the token.

    Raises SettingsError when a file cannot be read, or the token would cross the network unencrypted.
    """
    options = [
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 60_000),
        # A restarted server is found within seconds; gRPC's default back-off grows to two minutes.
        ("grpc.max_reconnect_backoff_ms", 3_000),
        *proxy_options(peer.address),
    ]
    token = peer.bearer()
    if peer.ca is not None:
        credentials = grpc.ssl_channel_credentials(read_file(peer.ca))
        if token:
            call = grpc.access_token_call_credentials(token)
            credentials = grpc.composite_channel_credentials(credentials, call)
        return grpc.aio.secure_channel(peer.address, credentials, options)
    if not token:
        return grpc.aio.insecure_channel(peer.address, options)
    if not is_loopback(peer.address):
        raise SettingsError(f"the token is not sent to {peer.address} without TLS: set the peer's `ca`")
    return grpc.aio.insecure_channel(peer.address, options, interceptors=[kind(token) for kind in _BEARERS])


def as_caller(principal: Principal) -> tuple[tuple[str, str], ...]:
    """Metadata that names `principal` as the caller that this server, a delegate, acts for."""
    return ((ON_BEHALF_OF, to_json(principal)),)


def error_of(failure: grpc.aio.AioRpcError, peer: str) -> errors.Error:
    """A peer's failure as the error for this server's own caller.

    Errors about the caller's request pass unchanged. Errors that only this server can have caused (a bad token, a
    method unknown to the peer) become Internal.
    """
    code = failure.code()
    if code in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN}:
        return errors.Internal(
            f"the {peer} server refused this server's call with {code.name}: check this server's token for it, and "
            "that both run the same version",
            reason="PEER_REFUSED",
        )
    if failure.trailing_metadata() is not None:
        try:
            status = rpc_status.from_call(failure)  # type: ignore[arg-type]
        except ValueError:  # the details do not belong to this code: a proxy has changed the response
            status = None
        if status is not None:
            return errors.from_status(status)
    if code is grpc.StatusCode.UNAVAILABLE:
        return errors.Unavailable(
            f"the {peer} server is unavailable: try again", reason="PEER_UNAVAILABLE", metadata={"peer": peer}
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceeded(f"the {peer} server did not answer in time", metadata={"peer": peer})
    return errors.Internal(f"the {peer} server answered {code.name}", reason="PEER_REFUSED")


@contextmanager
def forwarded(peer: str) -> Iterator[None]:
    """Turn the AioRpcError of a call to `peer` into the Error of error_of."""
    try:
        yield
    except grpc.aio.AioRpcError as failure:
        raise error_of(failure, peer) from failure


class _Bearer:
    """Adds the token to every call of a plaintext channel, on which gRPC refuses call credentials."""

    def __init__(self, token: str) -> None:
        self._entry = ("authorization", f"Bearer {token}")

    async def _call(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), self._entry)
        return await continuation(details._replace(metadata=metadata), request)


# grpc.aio registers an interceptor for the first matching kind only, so each kind needs its own class.
class _UnaryUnary(_Bearer, grpc.aio.UnaryUnaryClientInterceptor):
    intercept_unary_unary = _Bearer._call  # type: ignore[assignment]


class _UnaryStream(_Bearer, grpc.aio.UnaryStreamClientInterceptor):
    intercept_unary_stream = _Bearer._call  # type: ignore[assignment]


class _StreamUnary(_Bearer, grpc.aio.StreamUnaryClientInterceptor):
    intercept_stream_unary = _Bearer._call  # type: ignore[assignment]


_BEARERS = (_UnaryUnary, _UnaryStream, _StreamUnary)
