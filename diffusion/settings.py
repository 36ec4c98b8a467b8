"""The settings of the base model and of its denoiser. Imports no torch: a server's --help reads them."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel as Table
from pydantic import Field, model_validator


class ModelSettings(Table, frozen=True, extra="forbid"):
    """The resident model."""

    source: str | None = Field(
        default=None,
        description="Folder or hub id of a Stable Diffusion 1.x or 2.x checkpoint; absent: the bundled miniature",
    )
    revision: str | None = Field(default=None, description="Revision of a hub id")
    device: str = Field(default="auto", description="cpu, cuda, cuda:1, ...; auto takes cuda where there is one")
    dtype: str = Field(
        default="float32", pattern="^(float32|float16|bfloat16)$", description="Precision of the weights"
    )
    row_buckets: tuple[int, ...] = Field(
        default=(),
        description="Numbers of rows, such as 2,4,8,16: a call of the denoiser is filled up to the next of them, so "
        "that a device sees few shapes; absent: calls have as many rows as they need",
    )
    graphs: bool = Field(
        default=False,
        description="On a CUDA device: calls of row_buckets are captured as CUDA graphs, one for each size of picture",
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads of the model; absent: all cores")

    @model_validator(mode="after")
    def _has_buckets(self) -> Self:
        if self.graphs and not self.row_buckets:
            raise ValueError("graphs needs row_buckets")
        return self


class DenoiserSettings(Table, frozen=True, extra="forbid"):
    """Who runs the UNet: this process, or Triton Inference Servers."""

    kind: Literal["local", "triton"] = Field(
        default="local", description="local: in this process; triton: the servers at endpoints"
    )
    endpoints: str = Field(
        default="",
        description="HOST:PORT of Triton's gRPC, or several with commas between; the first that answers is called",
    )
    model: str = Field(default="denoiser", min_length=1, description="Name of the model on Triton")
    precision: Literal["fp32", "fp16", "bf16"] | None = Field(
        default=None, description="Precision that Triton's model must have; absent: whichever it has"
    )
    timeout_s: float = Field(default=30.0, gt=0, description="Seconds that one call may take, all attempts together")
    start_s: float = Field(default=60.0, ge=0, description="Seconds to wait for a first Triton server at the start")
    rest_s: float = Field(
        default=10.0, ge=0, description="Seconds that an endpoint which did not answer is asked after all others"
    )
    keepalive_s: float = Field(
        default=20.0, ge=1, description="Seconds without a word from Triton during a call before it is pinged"
    )
    ca: Path | None = Field(
        default=None, description="PEM file of authorities that Triton's certificate is checked by; switches TLS on"
    )
    cert: Path | None = Field(default=None, description="PEM file of the certificate chain shown to Triton")
    key: Path | None = Field(default=None, description="PEM file of that certificate's private key")

    @property
    def addresses(self) -> tuple[str, ...]:
        """Each endpoint."""
        return tuple(address.strip() for address in self.endpoints.split(",") if address.strip())

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.kind == "triton" and not self.addresses:
            raise ValueError("triton needs endpoints")
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key are given together or not at all")
        if self.cert is not None and self.ca is None:
            raise ValueError("cert and key need ca")
        return self
