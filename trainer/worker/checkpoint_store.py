"""Checkpoints of jobs: blobs in the store, named by the log."""

import asyncio

import structlog

from rpc.commits import discard
from rpc.errors import FailedPrecondition
from rpc.retry import retry_while_unavailable
from storage.errors import StorageError
from storage.objects.base import ObjectStore
from storage.objects.blobs import Blobs
from trainer.jobs.commands import KeepCheckpoint
from trainer.jobs.job_store import JobStore
from trainer.training.run import RunState
from trainer.worker.checkpoint_codec import CheckpointInvalid, read_checkpoint, write_checkpoint

_logger = structlog.get_logger(__name__)


class CheckpointStore:
    """Reads and writes checkpoints. Lives on the server's event loop. All methods retry while the store is
    unavailable."""

    def __init__(self, job_store: JobStore, store: ObjectStore) -> None:
        self._job_store = job_store
        self._store = store
        self._blobs = Blobs(store)

    async def read(self, blob: str) -> RunState | None:
        """The state in `blob`. None if there is no usable checkpoint: the job then starts from its first step."""
        if not blob:
            return None
        try:
            return read_checkpoint(await retry_while_unavailable(lambda: asyncio.to_thread(self._blobs.get, blob)))
        except (StorageError, CheckpointInvalid) as error:
            _logger.warning(
                "unusable checkpoint ignored: training starts from the first step", blob=blob, error=str(error)
            )
            return None

    async def write(self, tenant: str, state: RunState) -> str:
        """Writes `state` to a new blob and returns its name. The log does not name the blob yet."""
        blob = await retry_while_unavailable(
            lambda: asyncio.to_thread(self._blobs.put, tenant, write_checkpoint(state))
        )
        return blob.name

    async def keep(self, command: KeepCheckpoint, tenant: str, before: str) -> str:
        """Makes the log name a written blob instead of `before`, and returns the blob that it names then. If the
        attempt no longer holds the job, the log is unchanged."""
        try:
            await self._job_store.commit_own(command, tenant)
        except FailedPrecondition as error:
            _logger.info("attempt is over", job=command.name, attempt=command.attempt, why=error.message)
            await discard(self._store, command.checkpoint)
            return before
        if before:
            await discard(self._store, before)
        return command.checkpoint

    async def clear(self, job: str, *blobs: str) -> None:
        """Deletes those of an attempt's blobs that the log does not name as its job's checkpoint; another worker may
        resume from the blob that it names."""
        written = [blob for blob in blobs if blob]
        if written:
            row, _ = await retry_while_unavailable(lambda: self._job_store.row(job))
            for blob in written:
                if blob != row["detail"].get("checkpoint"):
                    await discard(self._store, blob)
