"""The settings of an object store; opens a store after a probe, and a ledger in it with a view folder of this server's
own."""

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

# The number of servers on one machine that can share a store without the setting `views`.
_SLOTS = 64
_START_TIMEOUT_S = 60.0

_C = TypeVar("_C")
_logger = structlog.get_logger(__name__)


class StoreSettings(BaseModel, frozen=True, extra="forbid"):
    """The object store of a server, and the folder of its views."""

    address: str = Field(description="Address of the store: a folder, file:///folder or s3://bucket[/prefix]")
    views: Path | None = Field(
        default=None,
        description="Folder for this server's derived views, which may be deleted; by default a folder of its own in "
        "the store's folder, or for S3 in the user's cache folder",
    )


class S3Settings(BaseModel, frozen=True, extra="forbid"):
    """Access to an S3 store; used when the store's address begins with s3://."""

    endpoint: str = Field(default="", description="HOST[:PORT] of the S3 store, without a scheme")
    access_key: str | None = Field(default=None, description="Access key; without keys, requests are not signed")
    secret_key: SecretStr | None = Field(default=None, description="Secret key")
    region: str = Field(default="us-east-1", description="Region; MinIO's is us-east-1 unless configured")
    secure: bool = Field(default=True, description="Whether to use TLS")
    ca_file: Path | None = Field(
        default=None, description="PEM file of certificate authorities to trust instead of the system's"
    )
    connect_timeout: timedelta = Field(
        default=timedelta(seconds=5), gt=timedelta(0), description="Longest time to establish a connection"
    )
    read_timeout: timedelta = Field(
        default=timedelta(seconds=15), gt=timedelta(0), description="Longest pause while the store sends a response"
    )

    def access(self) -> S3Access | None:
        """The access for storage; None when no endpoint is set. Raises storage's BadAddress."""
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
    """Open a store and probe it. An unavailable store is retried for a minute. Blocks.

    Raises SettingsError, which names the failed check.
    """
    try:
        store = open_store(settings.address, s3.access())
        retrying = Retrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=wait_random_exponential(multiplier=0.2, max=5),
            stop=stop_after_delay(_START_TIMEOUT_S),
            before_sleep=lambda state: _logger.warning("store unavailable, retrying", attempt=state.attempt_number),
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
    """Open the ledger of `state_machine` with a view folder of this server's own. Blocks.

    Without the setting `views`, it takes the first numbered folder that no other server uses, so that the views are
    found again after a restart. `alone`: it takes the first folder or fails, so that no second server on this machine
    can use the store. `metrics`: the registry for the ledger's metrics. Raises SettingsError.
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
        raise SettingsError(f"the views of {settings.address} cannot be stored: {error}; set store.views") from None


def _views_base(store: ObjectStore, address: str) -> Path | None:
    """A writable folder for views of this store alone; None when there is none."""
    try:
        if isinstance(store, DiskStore):
            # An object's name never begins with a dot.
            base = store.root / ".views"
        else:
            cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
            name = hashlib.sha256(f"{store.description} {address}".encode()).hexdigest()[:16]
            base = Path(cache).expanduser() / "pseudoword" / "views" / name
        base.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: this user has no home folder
        return None
    return base if os.access(base, os.W_OK) else None
