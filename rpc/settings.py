"""The typed settings of a server, from the command line, then environment variables, then defaults.

`Settings` is the base of each server's settings. A field `data` is PSEUDOWORD_DATA in the environment and --data on the
command line; a nested field `server.listen` is PSEUDOWORD_SERVER__LISTEN and --server.listen.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as ParseError


class SettingsError(Exception):
    """A setting, or a file that it names, is invalid. The message names it and gives the reason. The server does not
    start."""


class ServerSettings(BaseModel, frozen=True, extra="forbid"):
    """Addresses, authentication, TLS, shutdown and logs of a server."""

    listen: str = Field(
        default="127.0.0.1:0",
        description="Address to serve gRPC on, HOST:PORT; port 0 is any free port; loopback only without a token file",
    )
    metrics_listen: str = Field(
        default="127.0.0.1:0", description="Address of Prometheus' /metrics, HOST:PORT; empty: none"
    )
    health_listen: str = Field(
        default="",
        description="Address of a plaintext port with the health service only, for probes without TLS; empty: none",
    )
    token_file: Path | None = Field(
        default=None,
        description="TOML file of hashed bearer tokens; without it, every caller on loopback has all permissions",
    )
    tls_cert: Path | None = Field(
        default=None, description="PEM file of the server's certificate chain; with tls_key, switches TLS on"
    )
    tls_key: Path | None = Field(default=None, description="PEM file of the server's private key")
    client_ca: Path | None = Field(
        default=None, description="PEM file of certificate authorities; clients must present a certificate of one"
    )
    drain_s: float = Field(default=30.0, ge=0, description="Seconds for running calls to end after SIGTERM")
    address_file: Path | None = Field(
        default=None,
        description='JSON file written once the server is ready: {"grpc": "HOST:PORT", "metrics": "HOST:PORT"}',
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level of log lines to write"
    )
    log_format: Literal["json", "console"] = Field(
        default="json", description="Format of the log: one JSON object per line, or coloured text"
    )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key must be set together, or neither")
        if self.client_ca is not None and self.tls_cert is None:
            raise ValueError("client_ca needs tls_cert and tls_key")
        return self


class _Environment(EnvSettingsSource):
    """Reads PSEUDOWORD_REGISTRY=host:port, which clients also use, as PSEUDOWORD_REGISTRY__ADDRESS."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel) and "address" in kind.model_fields:
                return {"address": value}
            raise


class Settings(BaseSettings):
    """Base of each server's settings."""

    model_config = SettingsConfigDict(
        env_prefix="PSEUDOWORD_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
        extra="ignore",
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
    )

    server: ServerSettings = ServerSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls)

    @classmethod
    def load(cls, name: str, arguments: Sequence[str] | None = None) -> Self:
        """The settings of a server started as `python -m NAME [ARGUMENTS]`; the arguments are this process's own by
        default.

        --help prints every setting and exits; an invalid setting raises SettingsError.
        """
        given = list(sys.argv[1:] if arguments is None else arguments)
        try:
            source: CliSettingsSource[Any] = CliSettingsSource(
                cls, cli_prog_name=f"python -m {name}", cli_parse_args=given
            )
            return CliApp.run(cls, cli_args=given, cli_settings_source=source)
        except ValidationError as error:
            raise SettingsError(explain(error)) from None
        except ParseError as error:
            raise SettingsError(str(error)) from None


def explain(error: ValidationError) -> str:
    """The faults that pydantic found, by field, without the values: they may be secrets."""
    found = [(".".join(str(part) for part in item["loc"]), item["msg"]) for item in error.errors(include_input=False)]
    return "; ".join(f"{field}: {text}" if field else text for field, text in found)


def read_file(path: Path) -> bytes:
    """The bytes of a file that a setting names. Raises SettingsError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
