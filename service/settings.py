"""The settings of the Generation server."""

from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, Field, field_validator

from diffusion.schedulers import SCHEDULERS
from diffusion.settings import DenoiserSettings, ModelSettings
from rpc.clients import Peer
from rpc.open_store import S3Settings, StoreSettings
from rpc.settings import ServerSettings, Settings


class SafetyPolicy(StrEnum):
    """What to do with pictures that the safety checker flags."""

    OFF = "off"  # pictures are not checked
    FLAG = "flag"  # flagged pictures are sent and marked
    REFUSE = "refuse"  # a black picture is sent instead of a flagged one


class Defaults(BaseModel):
    """Defaults of a picture's settings."""

    steps: int = Field(default=20, ge=1, le=150, description="Denoising steps")
    guidance: float = Field(default=4.0, ge=1, le=30, description="Guidance scale")
    scheduler: str = Field(default="ddim", description="Name of the scheduler")
    strength: float = Field(
        default=0.8, gt=0, le=1, description="Fraction of the schedule that is rerun on a start picture"
    )

    @field_validator("scheduler")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in SCHEDULERS:
            raise ValueError(f"{name[:64]!r} is not one of {', '.join(sorted(SCHEDULERS))}")
        return name


class Limits(BaseModel):
    """Limits of one request, and of all requests together."""

    max_steps: int = Field(default=150, ge=1, description="Maximum steps of a picture")
    max_guidance: float = Field(default=30.0, ge=1, description="Maximum guidance scale")
    max_count: int = Field(default=16, ge=1, description="Maximum pictures of a request")
    max_size_px: int = Field(default=1024, ge=8, description="Maximum width and height in pixels")
    max_pictures: int = Field(default=128, ge=1, description="Maximum pictures waiting and being drawn")
    max_pictures_a_tenant: int = Field(
        default=128, ge=1, description="Maximum pictures of one tenant waiting and being drawn"
    )
    max_rows: int = Field(
        default=32, ge=1, description="Maximum rows in one call of the denoiser; a picture with guidance takes two"
    )
    aging: timedelta = Field(
        default=timedelta(seconds=10), description="Waiting time that raises a picture's priority by one"
    )


class WordSettings(BaseModel):
    """Caching, trust and compatibility of words."""

    cache_bytes: int = Field(default=256 * 2**20, ge=1024, description="Maximum bytes of vectors cached on the device")
    max_meanings: int = Field(default=100_000, ge=1, description="Maximum words whose version is cached")
    max_staleness: timedelta = Field(
        default=timedelta(seconds=1.4),
        ge=timedelta(0),
        description="Maximum age of a word's cached resolution, unless the request sets its own; the registry's watch "
        "confirms resolutions once a second; 0: every request asks the registry",
    )
    offline: timedelta = Field(
        default=timedelta(hours=1),
        ge=timedelta(0),
        description="Time that cached words are used while the registry is unavailable; other tenants' words: at most "
        "60 s",
    )
    keys: Path | None = Field(
        default=None,
        description="TOML file of trusted Ed25519 public keys; if set, only words signed by one of them are used",
    )
    allow_family: bool = Field(
        default=True,
        description="Use of words made for another model of the family, or for an unknown model, without allow_family "
        "in the request",
    )


class BatchSettings(BaseModel):
    """Batches, which are drawn into the store after all other requests; they need a store."""

    max_pictures: int = Field(default=10_000, ge=1, description="Maximum pictures of a batch")
    max_active: int = Field(default=100, ge=1, description="Maximum unfinished batches of a tenant")
    shard_pictures: int = Field(
        default=100,
        ge=1,
        le=1000,
        description="Pictures of a shard; a server holds them in memory while it packs the shard",
    )
    in_flight: int = Field(
        default=16, ge=1, description="Maximum pictures of batches in the engine; part of limits.max-pictures"
    )
    lease: timedelta = Field(
        default=timedelta(seconds=30),
        ge=timedelta(seconds=3),  # a store's clock counts whole seconds
        description="Time without a renewal after which another server of the store takes over a server's shards",
    )


class GenerationSettings(Settings):
    """Generation: draws pictures from prompts with words in them, on one resident model."""

    server: ServerSettings = ServerSettings(listen="127.0.0.1:7363")
    registry: Peer = Peer(address="127.0.0.1:7361")
    model: ModelSettings = ModelSettings()
    denoiser: DenoiserSettings = DenoiserSettings()
    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    words: WordSettings = WordSettings()
    safety: SafetyPolicy = Field(
        default=SafetyPolicy.OFF,
        description="Policy for pictures that the checkpoint's safety checker flags: off (no check), flag (send and "
        "mark them), refuse (send a black picture instead)",
    )
    store: StoreSettings = Field(
        default=StoreSettings(address=""), description="Store for batches; empty address: no batches"
    )
    s3: S3Settings = S3Settings()
    batches: BatchSettings = BatchSettings()
