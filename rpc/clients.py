"""How one of our servers calls another: address, token, TLS, on whose behalf."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_status import rpc_status
from pydantic import BaseModel, Field, SecretStr

from rpc import errors
from rpc.identity import ON_BEHALF_OF, Principal, to_json
from rpc.settings import SettingsError, is_loopback, read_file

MAX_MESSAGE_BYTES = 16 * 2**20

# Only what may safely be repeated: every unary call reads, or carries a request id that makes a repeat harmless.
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
    token_file: Path | None = Field(default=None, description="File that holds the bearer token for it")
    token: SecretStr | None = Field(default=None, description="The bearer token itself; token_file is safer")
    ca: Path | None = Field(
        default=None, description="PEM file of authorities that its certificate is checked by; switches TLS on"
    )

    def bearer(self) -> str | None:
        """The token, or None. Raises SettingsError when its file cannot be read."""
        if self.token is not None:
            return self.token.get_secret_value()
        return None if self.token_file is None else read_file(self.token_file).decode().strip()


def channel(peer: Peer) -> grpc.aio.Channel:
    """A channel that spreads calls over the peer's replicas, repeats UNAVAILABLE ones and carries the token.

    Raises SettingsError when a file cannot be read, or a token would cross the network in the clear.
    """
    options = [
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 60_000),
        # A server that comes back is found within seconds; gRPC's own pauses grow to two minutes.
        ("grpc.max_reconnect_backoff_ms", 3_000),
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
        raise SettingsError(f"a token is not sent to {peer.address} without TLS: set its ca")
    return grpc.aio.insecure_channel(peer.address, options, interceptors=[kind(token) for kind in _BEARERS])


def as_caller(principal: Principal) -> tuple[tuple[str, str], ...]:
    """Metadata that names `principal` as the one for whom this server, a delegate, calls."""
    return ((ON_BEHALF_OF, to_json(principal)),)


def error_of(failure: grpc.aio.AioRpcError, peer: str) -> errors.Error:
    """A peer's failure as this server's own caller should see it.

    What the peer said about the caller's request passes as it is. What only this server can have done wrong (a bad
    token, a method that the peer does not know) is Internal.
    """
    code = failure.code()
    if code in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN}:
        return errors.Internal(f"the {peer} server refused a call of this server: {code.name}", reason="PEER_REFUSED")
    if failure.trailing_metadata() is not None:
        try:
            status = rpc_status.from_call(failure)  # type: ignore[arg-type]
        except ValueError:  # details that do not belong to this code: a proxy's doing
            status = None
        if status is not None:
            return errors.from_status(status)
    if code is grpc.StatusCode.UNAVAILABLE:
        return errors.Unavailable(
            f"the {peer} server does not answer", reason="PEER_UNAVAILABLE", metadata={"peer": peer}
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceeded(f"the {peer} server did not answer in time", metadata={"peer": peer})
    return errors.Internal(f"the {peer} server answered {code.name}", reason="PEER_REFUSED")


@contextmanager
def forwarded(peer: str) -> Iterator[None]:
    """Turns the AioRpcError of a call to `peer` into what error_of says."""
    try:
        yield
    except grpc.aio.AioRpcError as failure:
        raise error_of(failure, peer) from failure


class _Bearer:
    """Adds the token to every call of a plaintext channel, where call credentials cannot go."""

    def __init__(self, token: str) -> None:
        self._entry = ("authorization", f"Bearer {token}")

    async def _call(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), self._entry)
        return await continuation(details._replace(metadata=metadata), request)


# grpc.aio files an interceptor under the first of these kinds that it is of, hence one class each.
class _UnaryUnary(_Bearer, grpc.aio.UnaryUnaryClientInterceptor):
    intercept_unary_unary = _Bearer._call  # type: ignore[assignment]


class _UnaryStream(_Bearer, grpc.aio.UnaryStreamClientInterceptor):
    intercept_unary_stream = _Bearer._call  # type: ignore[assignment]


class _StreamUnary(_Bearer, grpc.aio.StreamUnaryClientInterceptor):
    intercept_stream_unary = _Bearer._call  # type: ignore[assignment]


_BEARERS = (_UnaryUnary, _UnaryStream, _StreamUnary)
