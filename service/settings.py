"""The settings of the Generation service."""

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
    """What to do about them."""

    OFF = "off"  # nobody looks
    FLAG = "flag"  # they are sent, and said to be flagged
    REFUSE = "refuse"  # a black picture is sent instead


class Defaults(BaseModel):
    """What an absent setting of a picture means."""

    steps: int = Field(default=20, ge=1, le=150, description="Denoising steps.")
    guidance: float = Field(default=4.0, ge=1, le=30, description="Guidance scale.")
    scheduler: str = Field(default="ddim", description="Name of the scheduler.")
    strength: float = Field(default=0.8, gt=0, le=1, description="How much of a start picture is redrawn.")

    @field_validator("scheduler")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in SCHEDULERS:
            raise ValueError(f"{name[:64]!r} is not one of {', '.join(sorted(SCHEDULERS))}")
        return name


class Limits(BaseModel):
    """What one request, and all of them together, may ask for."""

    max_steps: int = Field(default=150, ge=1, description="Most steps of a picture.")
    max_guidance: float = Field(default=30.0, ge=1, description="Greatest guidance scale.")
    max_count: int = Field(default=16, ge=1, description="Most pictures of a request.")
    max_size_px: int = Field(default=1024, ge=8, description="Greatest width and height in pixels.")
    max_pictures: int = Field(default=128, ge=1, description="Most pictures that wait or are drawn at once.")
    max_pictures_a_tenant: int = Field(
        default=128, ge=1, description="Most pictures of one tenant that wait or are drawn at once."
    )
    max_rows: int = Field(
        default=32, ge=1, description="Most rows in one call of the denoiser; guidance takes two a picture."
    )
    aging: timedelta = Field(default=timedelta(seconds=10), description="Waiting this long is worth one priority.")


class WordSettings(BaseModel):
    """Words: what is kept of them and for how long, what fits."""

    cache_bytes: int = Field(default=256 * 2**20, ge=1024, description="Most bytes of vectors kept on the device.")
    max_meanings: int = Field(default=100_000, ge=1, description="Most words whose meaning is kept.")
    max_staleness: timedelta = Field(
        default=timedelta(seconds=1.4),
        ge=timedelta(0),
        description="How old the meaning of a word may be where a request does not say; the registry's watch speaks "
        "once a second. 0: the registry is asked for every request.",
    )
    offline: timedelta = Field(
        default=timedelta(hours=1),
        ge=timedelta(0),
        description="How long words that are kept go on being used while the registry is away; other tenants' words "
        "for 60 s at most.",
    )
    keys: Path | None = Field(
        default=None,
        description="TOML file of Ed25519 public keys; with one, only words that one of them has signed are used.",
    )
    allow_family: bool = Field(
        default=True,
        description="Whether a word made for another model of the family, or of unknown base, may be used unasked.",
    )


class BatchSettings(BaseModel):
    """Batches: drawn into the store, behind all other requests. Without a store there are none."""

    max_pictures: int = Field(default=10_000, ge=1, description="Most pictures of a batch.")
    max_active: int = Field(default=100, ge=1, description="Most batches of a tenant that have not ended.")
    shard_pictures: int = Field(
        default=100, ge=1, le=1000, description="Pictures of a shard, which a server has in memory while it packs them."
    )
    in_flight: int = Field(
        default=16, ge=1, description="Most pictures of batches that the engine has at once, of limits.max-pictures."
    )
    lease: timedelta = Field(
        default=timedelta(seconds=30),
        ge=timedelta(seconds=3),  # a store's clock counts whole seconds
        description="A server of the same store that was silent for so long is taken for dead: others draw its shards.",
    )


class GenerationSettings(Settings):
    """Generation: sentences with words in them in, pictures out, from one resident model."""

    server: ServerSettings = ServerSettings(listen="127.0.0.1:7363")
    registry: Peer = Peer(address="127.0.0.1:7361")
    model: ModelSettings = ModelSettings()
    denoiser: DenoiserSettings = DenoiserSettings()
    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    words: WordSettings = WordSettings()
    safety: SafetyPolicy = Field(
        default=SafetyPolicy.OFF,
        description="What to do about pictures that the checkpoint's own safety checker objects to: off (do not look), "
        "flag (send them, and say so), refuse (send a black one instead)",
    )
    store: StoreSettings = Field(default=StoreSettings(address=""), description="For batches; empty address: none")
    s3: S3Settings = S3Settings()
    batches: BatchSettings = BatchSettings()
