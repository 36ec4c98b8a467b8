"""Settings of the queue and of the connection to NATS."""

import re
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from rpc.settings import SettingsError, read_file


class QueueSettings(BaseModel, frozen=True, extra="forbid"):
    """Where workers take their jobs from, and how many jobs may be unfinished: queued, running or being published."""

    kind: Literal["log", "jetstream"] = Field(
        default="log",
        description="Queue of the jobs: log (this server trains its jobs itself) or jetstream (separate workers, "
        "python -m trainer worker, get them through NATS)",
    )
    max_unfinished: int = Field(default=1_000, ge=1, description="Maximum unfinished jobs of all tenants")
    max_unfinished_per_tenant: int = Field(default=100, ge=1, description="Maximum unfinished jobs of one tenant")
    ack_wait: timedelta = Field(
        default=timedelta(seconds=60),
        ge=timedelta(seconds=1),
        description="Time without a renewal by its worker after which a job goes to another worker",
    )
    ahead: int = Field(
        default=4,
        ge=1,
        description="Maximum jobs of a base model that are in NATS and not delivered yet; their order is fixed",
    )
    dispatcher_lease: timedelta = Field(
        default=timedelta(seconds=15),
        ge=timedelta(seconds=1),
        description="Time without a renewal by the dispatching server after which another one takes over",
    )


class NatsSettings(BaseModel, frozen=True, extra="forbid"):
    """The connection to NATS; used by servers with queue.kind jetstream and by workers."""

    servers: str = Field(
        default="nats://127.0.0.1:4222",
        description="NATS servers, separated by commas: nats://HOST:PORT, or tls://HOST:PORT for TLS",
    )
    stream: str = Field(
        default="pseudoword-jobs",
        pattern="^[A-Za-z0-9_-]{1,64}$",
        description="Name of the stream, and prefix of all other subjects and buckets",
    )
    replicas: int = Field(default=1, ge=1, le=5, description="Servers of a NATS cluster that store each message")
    user: str | None = Field(default=None, description="User name; needs password_file")
    password_file: Path | None = Field(default=None, description="File with the user's password")
    token_file: Path | None = Field(default=None, description="File with a token, instead of user and password")
    ca: Path | None = Field(
        default=None, description="PEM file of the authorities that verify the certificate of NATS; enables TLS"
    )
    cert: Path | None = Field(default=None, description="PEM file of the client certificate chain")
    key: Path | None = Field(default=None, description="PEM file of that certificate's private key")

    @property
    def addresses(self) -> list[str]:
        """The address of each server."""
        return [one.strip() for one in self.servers.split(",") if one.strip()]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if not self.addresses or any(not re.match(r"(nats|tls)://[^/]+$", one) for one in self.addresses):
            raise ValueError("servers must be nats://HOST:PORT or tls://HOST:PORT; separate several with commas")
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
        """Arguments of nats.connect. Raises SettingsError when a file is unusable."""
        options: dict[str, Any] = {"servers": self.addresses}
        if self.user is not None and self.password_file is not None:
            options |= {"user": self.user, "password": read_file(self.password_file).decode().strip()}
        if self.token_file is not None:
            options["token"] = read_file(self.token_file).decode().strip()
        if self.ca is not None:
            try:
                options["tls"] = ssl.create_default_context(cafile=self.ca)
                if self.cert is not None:
                    options["tls"].load_cert_chain(self.cert, self.key)
            except (OSError, ssl.SSLError) as error:
                raise SettingsError(f"nats: cannot load ca, cert or key: {error}") from None
        return options
