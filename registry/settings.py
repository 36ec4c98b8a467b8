"""The settings of the registry."""

from datetime import timedelta
from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, model_validator

from rpc.open_store import S3Settings, StoreSettings
from rpc.settings import ServerSettings, Settings


class QuotaSettings(BaseModel, frozen=True, extra="forbid"):
    """Default quotas of a tenant."""

    concepts: int = Field(default=10_000, ge=1, description="Maximum concepts of a tenant, soft-deleted ones included")
    versions_per_concept: int = Field(
        default=10_000, ge=1, description="Maximum versions of a concept, yanked ones included"
    )
    embedding_bytes: int = Field(
        default=10 * 2**30, ge=1, description="Maximum total size of a tenant's embeddings, in bytes"
    )


class SignatureSettings(BaseModel, frozen=True, extra="forbid"):
    """Signatures of published versions."""

    keys: Path | None = Field(
        default=None,
        description="TOML file of Ed25519 public keys; with it, every signature of a published version must be valid "
        "for one of them",
    )
    required: bool = Field(default=False, description="Whether versions without a signature are refused; needs keys")

    @model_validator(mode="after")
    def _required_needs_keys(self) -> Self:
        if self.required and self.keys is None:
            raise ValueError("required needs keys")
        return self


class RegistrySettings(Settings):
    """Registry: all versions of all words, in a folder or an S3 bucket."""

    server: ServerSettings = ServerSettings(listen="127.0.0.1:7361")
    store: StoreSettings = StoreSettings(address=str(Path("pseudoword-data") / "store"))
    s3: S3Settings = S3Settings()
    quotas: QuotaSettings = QuotaSettings()
    keep_deleted: timedelta = Field(
        default=timedelta(days=30), description="Time after which a soft-deleted concept may be purged"
    )
    signatures: SignatureSettings = SignatureSettings()
    import_pickles: bool = Field(
        default=False,
        description="Whether ImportVersion reads A1111's .pt files, which are pickles, in a child process without "
        "rights",
    )
    commit_timeout: timedelta = Field(
        default=timedelta(seconds=30), description="Longest wait for a commit of a call without a deadline"
    )
