"""The settings of the base model and of its denoiser. Imports no torch, because a server's --help imports them."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel as Table
from pydantic import Field, model_validator


class ModelSettings(Table, frozen=True, extra="forbid"):
    """The resident model."""

    source: str | None = Field(
        default=None,
        description="Folder or hub id of a Stable Diffusion 1.x or 2.x checkpoint; by default the bundled miniature",
    )
    revision: str | None = Field(default=None, description="Revision on the hub")
    device: str = Field(
        default="auto", description="Device of the model: cpu, cuda, cuda:1, ...; auto: cuda if available, else cpu"
    )
    dtype: str = Field(
        default="float32", pattern="^(float32|float16|bfloat16)$", description="Precision of the weights"
    )
    row_buckets: tuple[int, ...] = Field(
        default=(),
        description="Numbers of rows, such as 2,4,8,16, to which calls of the denoiser are padded, so that the device "
        "sees few shapes; by default no padding",
    )
    graphs: bool = Field(
        default=False,
        description="Whether calls of the sizes in row_buckets are captured as CUDA graphs, one per size of picture; "
        "needs a CUDA device",
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads of the model; by default all cores")

    @model_validator(mode="after")
    def _has_buckets(self) -> Self:
        if self.graphs and not self.row_buckets:
            raise ValueError("graphs needs row_buckets")
        return self


class DenoiserSettings(Table, frozen=True, extra="forbid"):
    """Where the UNet runs: in this process, or on Triton Inference Servers."""

    kind: Literal["local", "triton"] = Field(
        default="local", description="Where the UNet runs: local (this process) or triton (the servers at endpoints)"
    )
    endpoints: str = Field(
        default="",
        description="HOST:PORT of Triton's gRPC port, or several, separated by commas, tried in this order",
    )
    model: str = Field(default="denoiser", min_length=1, description="Name of the model on Triton")
    precision: Literal["fp32", "fp16", "bf16"] | None = Field(
        default=None, description="Required precision of Triton's model; by default any"
    )
    timeout_s: float = Field(default=30.0, gt=0, description="Seconds for one call, all attempts together")
    start_s: float = Field(
        default=60.0, ge=0, description="Longest wait for a first Triton server at the start, in seconds"
    )
    rest_s: float = Field(
        default=10.0,
        ge=0,
        description="Seconds for which an endpoint that did not answer is tried after all others only",
    )
    keepalive_s: float = Field(
        default=20.0, ge=1, description="Seconds without data from Triton during a call before a keepalive ping"
    )
    ca: Path | None = Field(
        default=None, description="PEM file of certificate authorities to verify Triton with; switches TLS on"
    )
    cert: Path | None = Field(default=None, description="PEM file of the client certificate chain for Triton")
    key: Path | None = Field(default=None, description="PEM file of that certificate's private key")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The endpoints as a tuple of addresses."""
        return tuple(address.strip() for address in self.endpoints.split(",") if address.strip())

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.kind == "triton" and not self.addresses:
            raise ValueError("triton needs endpoints")
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key must be set together, or neither")
        if self.cert is not None and self.ca is None:
            raise ValueError("cert and key need ca")
        return self
