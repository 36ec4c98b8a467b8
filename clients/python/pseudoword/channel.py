"""Channels to the three servers: addresses, TLS, token, retries."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from pseudoword.addresses import is_loopback, proxy_options

MAX_MESSAGE_BYTES = 16 * 2**20

# Retries are safe: every unary call is a read, or carries a request id that makes it idempotent.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "3s",
                "backoffMultiplier": 2.5,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "loadBalancingConfig": [{"round_robin": {}}],
}


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """The addresses of the three servers, by default those of `pseudoword up`.

    `ca` is a PEM file of certificate authorities and switches TLS on; `token` is a bearer token. Without TLS a token is
    sent to loopback addresses only.
    """

    registry: str = "127.0.0.1:7361"
    trainer: str = "127.0.0.1:7362"
    generation: str = "127.0.0.1:7363"
    token: str | None = None
    ca: Path | None = None


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamUnaryClientInterceptor):
    """Adds the token to every call of a plaintext channel, on which gRPC refuses call credentials."""

    def __init__(self, token: str) -> None:
        self._entry = ("authorization", f"Bearer {token}")

    def _call(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        metadata = [*(details.metadata or []), self._entry]
        return continuation(details._replace(metadata=metadata), request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = _call  # type: ignore[assignment]


def connect(address: str, endpoints: Endpoints) -> grpc.Channel:
    """A channel to one server. Raises ValueError when a token would cross the network unencrypted."""
    options = [
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 60_000),
        # A restarted server is found within seconds; gRPC's default back-off grows to two minutes.
        ("grpc.max_reconnect_backoff_ms", 3_000),
        *proxy_options(address),
    ]
    if endpoints.ca is not None:
        credentials = grpc.ssl_channel_credentials(endpoints.ca.read_bytes())
        if endpoints.token:
            call = grpc.access_token_call_credentials(endpoints.token)
            credentials = grpc.composite_channel_credentials(credentials, call)
        return grpc.secure_channel(address, credentials, options)
    channel = grpc.insecure_channel(address, options)
    if not endpoints.token:
        return channel
    if not is_loopback(address):
        raise ValueError(
            f"the token is not sent to {address} without TLS: give the server's certificate authority (--ca FILE)"
        )
    return grpc.intercept_channel(channel, _Bearer(endpoints.token))
