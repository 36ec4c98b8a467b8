"""Bytes that no entry of the log names any more."""

import asyncio

import structlog

from storage.errors import StorageError
from storage.objects.base import ObjectStore

_logger = structlog.get_logger(__name__)


async def discard(store: ObjectStore, blob: str) -> None:
    """Deletes the object `blob`, if the store is there."""
    try:
        await asyncio.to_thread(store.delete, blob)
    except StorageError as error:
        # Nothing refers to it: waste, and no harm; `pseudoword gc` finds it.
        _logger.warning("a blob was not deleted", blob=blob, error=error.message)
