"""The settings of an object store, and how a server opens a ledger in it: asked whether it is fit, views of its own."""

import hashlib
import os
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import structlog
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, Field, SecretStr
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from rpc.settings import SettingsError
from storage.errors import StorageError, StoreUnavailable, ViewInUse
from storage.ledger.ledger import Ledger
from storage.ledger.metrics import LedgerMetrics
from storage.ledger.state_machine import StateMachine
from storage.objects.base import ObjectStore
from storage.objects.disk import DiskStore
from storage.objects.open import open_store
from storage.objects.probe import probe
from storage.objects.s3 import S3Access

# Servers of one machine that can share a store without a views setting.
_SLOTS = 64
_PATIENCE_S = 60.0

_C = TypeVar("_C")
_logger = structlog.get_logger(__name__)


class StoreSettings(BaseModel, frozen=True, extra="forbid"):
    """Where a server keeps what lasts."""

    address: str = Field(description="Folder, file:///folder or s3://bucket[/prefix]")
    views: Path | None = Field(
        default=None,
        description="Folder for this server's derived views, which may be deleted; absent: one of its own in the "
        "store's folder, or for S3 in the user's cache folder",
    )


class S3Settings(BaseModel, frozen=True, extra="forbid"):
    """How to reach an S3 store; read where the store's address begins with s3://."""

    endpoint: str = Field(default="", description="HOST[:PORT] of the S3 store, without a scheme")
    access_key: str | None = Field(default=None, description="Access key; without keys, requests are not signed")
    secret_key: SecretStr | None = Field(default=None, description="Secret key")
    region: str = Field(default="us-east-1", description="Region; MinIO's is us-east-1 unless configured")
    secure: bool = Field(default=True, description="Whether to speak TLS")
    ca_file: Path | None = Field(default=None, description="PEM file of authorities to trust instead of the system's")
    connect_timeout: timedelta = Field(
        default=timedelta(seconds=5), gt=timedelta(0), description="How long a connection may take to be made"
    )
    read_timeout: timedelta = Field(
        default=timedelta(seconds=15), gt=timedelta(0), description="How long the store may say nothing in an answer"
    )

    def access(self) -> S3Access | None:
        """None where no endpoint is set. Raises storage's BadAddress."""
        if not self.endpoint:
            return None
        return S3Access(
            endpoint=self.endpoint,
            access_key=self.access_key,
            secret_key=None if self.secret_key is None else self.secret_key.get_secret_value(),
            region=self.region,
            secure=self.secure,
            ca_file=self.ca_file,
            connect_timeout_s=self.connect_timeout.total_seconds(),
            read_timeout_s=self.read_timeout.total_seconds(),
        )


def open_fit_store(settings: StoreSettings, s3: S3Settings) -> ObjectStore:
    """Open a store and probe it; one that does not answer is waited for a minute. Blocks.

    Raises SettingsError saying what failed.
    """
    try:
        store = open_store(settings.address, s3.access())
        retrying = Retrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=wait_random_exponential(multiplier=0.2, max=5),
            stop=stop_after_delay(_PATIENCE_S),
            before_sleep=lambda state: _logger.warning("store does not answer yet", attempt=state.attempt_number),
            reraise=True,
        )
        retrying(probe, store)
    except StorageError as error:
        raise SettingsError(f"the store {settings.address} cannot be used: {error.message}") from None
    return store


def open_ledger(
    store: ObjectStore,
    settings: StoreSettings,
    state_machine: StateMachine[_C],
    *,
    shards: int,
    alone: bool = False,
    metrics: CollectorRegistry | None = None,
) -> Ledger[_C]:
    """Open `book`'s ledger with views of this server's own. Blocks.

    Without the setting, the views lie in the first folder that no other server uses, so that they are found again after
    a restart; `alone`: in the first one, so that no second server of this machine can use the store. `metrics`: where
    the ledger counts. Raises SettingsError.
    """
    counters = LedgerMetrics(metrics)

    def opened(folder: Path) -> Ledger[_C]:
        return Ledger.open(store, state_machine, shards=shards, view_folder=folder, metrics=counters)

    try:
        if settings.views is not None:
            return opened(settings.views)
        base = _views_base(store, settings.address)
        for slot in range(_SLOTS if base is not None else 0):
            assert base is not None
            try:
                return opened(base / str(slot))
            except ViewInUse:
                if alone:
                    raise
        return opened(Path(tempfile.mkdtemp(prefix="pseudoword-views-")))
    except StorageError as error:
        raise SettingsError(f"the store {settings.address} cannot be used: {error.message}") from None
    except OSError as error:
        raise SettingsError(f"the views of {settings.address} cannot be kept: {error}") from None


def _views_base(store: ObjectStore, address: str) -> Path | None:
    """A folder that can be written and belongs to this store alone; None where there is none."""
    try:
        if isinstance(store, DiskStore):
            # No object's name begins with a dot.
            base = store.root / ".views"
        else:
            cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
            name = hashlib.sha256(f"{store.description} {address}".encode()).hexdigest()[:16]
            base = Path(cache).expanduser() / "pseudoword" / "views" / name
        base.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return None
    return base if os.access(base, os.W_OK) else None
