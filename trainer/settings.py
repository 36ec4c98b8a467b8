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
    """Which pictures are accepted, and for how long they are kept."""

    max_bytes: int = Field(default=20 * 2**20, ge=1, description="Maximum size of a picture in bytes")
    max_pixels: int = Field(default=50_000_000, ge=1, description="Maximum pixels of a picture")
    min_side_px: int = Field(default=16, ge=1, description="Minimum width and height of a picture in pixels")
    lifetime: timedelta = Field(
        default=timedelta(days=7),
        gt=timedelta(0),
        description="Time that a picture is kept after its last upload; longer while an unfinished job needs it",
    )
    after_success: timedelta = Field(
        default=timedelta(0),
        ge=timedelta(0),
        description="Time that the pictures of a succeeded job are kept; longer while another job needs them",
    )
    after_failure: timedelta = Field(
        default=timedelta(days=1),
        ge=timedelta(0),
        description="Minimum time that the pictures of a failed or cancelled job are kept, for a retry",
    )
    max_bytes_per_tenant: int = Field(default=2**30, ge=1, description="Maximum total bytes of one tenant's pictures")
    max_receiving_bytes: int = Field(
        default=256 * 2**20, ge=2**20, description="Maximum total bytes of all uploads in progress"
    )


class EngineSettings(BaseModel, frozen=True, extra="forbid"):
    """How many jobs are trained together, and how."""

    max_running: int = Field(default=16, ge=1, description="Maximum jobs trained together")
    max_running_per_tenant: int = Field(default=8, ge=1, description="Maximum jobs of one tenant trained together")
    max_rows: int = Field(default=64, ge=1, description="Maximum rows of one forward and backward pass")
    quantum_rows: int = Field(
        default=2_000,
        ge=1,
        description="Rows that a tenant's jobs are granted before the next tenant's turn; at least max_rows",
    )
    checkpoint_every: timedelta = Field(
        default=timedelta(seconds=30),
        ge=timedelta(0),
        description="Interval between a job's checkpoints, from which it resumes if the server is killed",
    )
    learned_start: Path | None = Field(
        default=None,
        description="Folder of a learned start for the checkpoint; absent: learned_start beside it, if that exists",
    )
    checkpoint_activations: bool = Field(
        default=False, description="Recomputation of activations in the backward pass: less memory, more time"
    )


class EvaluationSettings(BaseModel, frozen=True, extra="forbid"):
    """Whether versions are evaluated, and by which judge models."""

    after_publishing: bool = Field(
        default=True, description="Evaluation of each version that a job publishes, while nothing is trained"
    )
    max_waiting_per_tenant: int = Field(
        default=20,
        ge=1,
        description="Maximum unfinished evaluations of one tenant that the trainer created itself; no more are created",
    )
    clip: Path | None = Field(
        default=None,
        description="Folder of a CLIPModel and its processor, safetensors, for CLIP-I and CLIP-T; absent: clip beside "
        "the checkpoint, if that exists",
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
        default=8, ge=1, description="Publishing attempts answered with INTERNAL after which a job fails"
    )
    max_losses: int = Field(default=3, ge=1, description="Worker deaths during its training after which a job fails")
