"""The settings of the trainer."""

from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel, Field

from diffusion.settings import ModelSettings
from rpc.clients import Peer
from rpc.open_store import S3Settings, StoreSettings
from rpc.settings import ServerSettings, Settings
from trainer.queue.settings import NatsSettings, QueueSettings


class PictureSettings(BaseModel, frozen=True, extra="forbid"):
    """Which pictures are taken, and for how long."""

    max_bytes: int = Field(default=20 * 2**20, ge=1, description="Most bytes of a picture")
    max_pixels: int = Field(default=50_000_000, ge=1, description="Most pixels of a picture")
    min_side_px: int = Field(default=16, ge=1, description="Least width and height of a picture in pixels")
    lifetime: timedelta = Field(
        default=timedelta(days=7),
        gt=timedelta(0),
        description="How long a picture is kept after its last upload, or longer while an unfinished job needs it",
    )
    after_success: timedelta = Field(
        default=timedelta(0),
        ge=timedelta(0),
        description="How long the pictures of a job that has succeeded stay, where no other job needs them",
    )
    after_failure: timedelta = Field(
        default=timedelta(days=1),
        ge=timedelta(0),
        description="How long the pictures of a job that has failed or was cancelled stay at least, for a retry",
    )
    max_bytes_per_tenant: int = Field(default=2**30, ge=1, description="Most bytes of one tenant's pictures together")
    max_receiving_bytes: int = Field(
        default=256 * 2**20, ge=2**20, description="Most bytes of all uploads together that are on their way"
    )


class EngineSettings(BaseModel, frozen=True, extra="forbid"):
    """How many jobs are trained at once, and how."""

    max_running: int = Field(default=16, ge=1, description="Most jobs trained at once")
    max_running_per_tenant: int = Field(default=8, ge=1, description="Most jobs of one tenant trained at once")
    max_rows: int = Field(default=64, ge=1, description="Most rows of one forward and backward pass")
    quantum_rows: int = Field(
        default=2_000, ge=1, description="Rows that a tenant's jobs may have before the next tenant's turn"
    )
    checkpoint_every: timedelta = Field(
        default=timedelta(seconds=30),
        ge=timedelta(0),
        description="How often a job is saved, to go on from there should the server be killed",
    )
    learned_start: Path | None = Field(
        default=None,
        description="Folder of a learned start for the checkpoint; absent: learned_start beside it, where there is one",
    )
    checkpoint_activations: bool = Field(
        default=False, description="Compute activations anew in the backward pass: less memory, more time"
    )


class EvaluationSettings(BaseModel, frozen=True, extra="forbid"):
    """What is measured of versions, and by whom."""

    after_publishing: bool = Field(
        default=True, description="Evaluate each version that a job publishes, while nothing is trained"
    )
    max_waiting_per_tenant: int = Field(
        default=20,
        ge=1,
        description="Most unfinished evaluations of one tenant that were made so; beyond that none is made",
    )
    clip: Path | None = Field(
        default=None,
        description="Folder of a CLIPModel and its processor, safetensors, for CLIP-I and CLIP-T; absent: clip beside "
        "the checkpoint, where there is one",
    )
    dino: Path | None = Field(
        default=None, description="Folder of a DINO model and its image processor, safetensors; absent: no DINO score"
    )


class TrainerSettings(Settings):
    """Trainer: pictures in, words out, published to the registry."""

    server: ServerSettings = ServerSettings(listen="127.0.0.1:7362")
    store: StoreSettings = StoreSettings(address=str(Path("pseudoword-data") / "jobs"))
    s3: S3Settings = S3Settings()
    registry: Peer = Peer(address="127.0.0.1:7361")
    model: ModelSettings = ModelSettings()
    pictures: PictureSettings = PictureSettings()
    queue: QueueSettings = QueueSettings()
    nats: NatsSettings = NatsSettings()
    engine: EngineSettings = EngineSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    publish_tries: int = Field(
        default=8, ge=1, description="A job is given up when the registry has answered INTERNAL to so many publishings"
    )
    max_losses: int = Field(
        default=3, ge=1, description="A job is given up when so many workers were killed while they trained it"
    )
