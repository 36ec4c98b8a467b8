"""Who hands out the jobs, and how NATS is reached."""

import re
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from rpc.settings import SettingsError, read_file


class QueueSettings(BaseModel, frozen=True, extra="forbid"):
    """Where workers get their jobs, and how many jobs may be unfinished: waiting, trained or on their way to the
    registry."""

    kind: Literal["log", "jetstream"] = Field(
        default="log",
        description="log: this server trains its jobs itself; jetstream: workers in processes of their own do "
        "(python -m trainer worker), which get them through NATS",
    )
    max_unfinished: int = Field(default=1_000, ge=1, description="Most unfinished jobs of all tenants")
    max_unfinished_per_tenant: int = Field(default=100, ge=1, description="Most unfinished jobs of one tenant")
    ack_wait: timedelta = Field(
        default=timedelta(seconds=60),
        ge=timedelta(seconds=1),
        description="A job whose worker has not been heard of for so long goes to another one",
    )
    ahead: int = Field(
        default=4,
        ge=1,
        description="Most jobs of a base model that NATS has for the next workers; who is next after them is open",
    )
    dispatcher_lease: timedelta = Field(
        default=timedelta(seconds=15),
        ge=timedelta(seconds=1),
        description="After so long without a word from the server that hands out the jobs, another one does it",
    )


class NatsSettings(BaseModel, frozen=True, extra="forbid"):
    """NATS, read where queue.kind is jetstream and by workers."""

    servers: str = Field(
        default="nats://127.0.0.1:4222", description="nats://HOST:PORT, or several with commas between; tls:// for TLS"
    )
    stream: str = Field(
        default="pseudoword-jobs",
        pattern="^[A-Za-z0-9_-]{1,64}$",
        description="Name of the stream, and first part of the names of everything else there",
    )
    replicas: int = Field(default=1, ge=1, le=5, description="NATS servers that keep each message, of a cluster's")
    user: str | None = Field(default=None, description="User name; needs password_file")
    password_file: Path | None = Field(default=None, description="File that holds the user's password")
    token_file: Path | None = Field(default=None, description="File that holds a token, instead of user and password")
    ca: Path | None = Field(
        default=None, description="PEM file of authorities that NATS' certificate is checked by; switches TLS on"
    )
    cert: Path | None = Field(default=None, description="PEM file of the certificate chain shown to NATS")
    key: Path | None = Field(default=None, description="PEM file of that certificate's private key")

    @property
    def addresses(self) -> list[str]:
        """Each server."""
        return [one.strip() for one in self.servers.split(",") if one.strip()]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if not self.addresses or any(not re.match(r"(nats|tls)://[^/]+$", one) for one in self.addresses):
            raise ValueError("servers must be nats://HOST:PORT or tls://HOST:PORT, with commas between several")
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file are given together or not at all")
        if self.user is not None and self.token_file is not None:
            raise ValueError("user and token_file exclude each other")
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key are given together or not at all")
        if self.cert is not None and self.ca is None:
            raise ValueError("cert and key need ca")
        return self

    def options(self) -> dict[str, Any]:
        """What nats.connect is told. Raises SettingsError when a file is of no use."""
        found: dict[str, Any] = {"servers": self.addresses}
        if self.user is not None and self.password_file is not None:
            found |= {"user": self.user, "password": read_file(self.password_file).decode().strip()}
        if self.token_file is not None:
            found["token"] = read_file(self.token_file).decode().strip()
        if self.ca is not None:
            try:
                found["tls"] = ssl.create_default_context(cafile=self.ca)
                if self.cert is not None:
                    found["tls"].load_cert_chain(self.cert, self.key)
            except (OSError, ssl.SSLError) as error:
                raise SettingsError(f"nats: the certificates are of no use: {error}") from None
        return found
