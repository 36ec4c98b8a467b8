"""Commits an rpc's command to a ledger with the caller's request id, principal and deadline."""

import asyncio
import hashlib
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

import structlog

from rpc.errors import Error
from rpc.identity import current_principal
from rpc.retry import retry_while_unavailable
from storage.errors import Contention, EntryTooLarge, NotCommitted, RequestIdReused, StorageError
from storage.ledger.ledger import Ledger
from storage.ledger.pending import Result
from storage.objects.base import ObjectStore

_C = TypeVar("_C")

# A commit that raises one of these has committed nothing: the blobs uploaded for it can be deleted.
UNCOMMITTED = (Error, Contention, EntryTooLarge, NotCommitted, RequestIdReused)


_logger = structlog.get_logger(__name__)


async def commit(
    ledger: Ledger[_C], shard: int, tenant: str, command: _C, request: Any, context: Any, *, longest: timedelta
) -> Result:
    """Commit `command` for the rpc `request`. Its request_id makes the commit idempotent; with validate_only nothing is
    committed.

    The commit times out after `longest`, or early enough before the caller's deadline that the error still reaches the
    caller. Raises the state machine's errors, and StorageErrors.
    """
    principal = current_principal()
    remaining_s = context.time_remaining()
    timeout_s = longest.total_seconds()
    if remaining_s is not None:
        timeout_s = max(0.0, min(timeout_s, remaining_s - min(1.0, remaining_s / 5)))
    return await ledger.commit(
        shard,
        command,
        request_id=getattr(request, "request_id", "") or str(uuid.uuid4()),
        tenant=tenant,
        digest=body_digest(request),
        actor=principal.name,
        on_behalf_of=None if principal.on_behalf_of is None else principal.caller.name,
        timeout_s=timeout_s,
        validate_only=getattr(request, "validate_only", False),
    )


async def commit_own(
    ledger: Ledger[_C], shard: int, tenant: str, command: _C, *, actor: str, longest: timedelta
) -> Result:
    """Commit `command` of the server itself, under the name `actor`. Retries until the store is available; each attempt
    takes at most `longest`. Raises the state machine's errors, Closed and StoreReplaced."""
    request_id = str(uuid.uuid4())
    return await retry_while_unavailable(
        lambda: ledger.commit(
            shard,
            command,
            request_id=request_id,
            tenant=tenant,
            digest=request_id,
            actor=actor,
            on_behalf_of=None,
            timeout_s=longest.total_seconds(),
        )
    )


async def commit_blob(
    blob: str, commit: Callable[[], Awaitable[dict[str, Any]]], delete: Callable[[str], Awaitable[None]]
) -> dict[str, Any]:
    """Run `commit`, which names the uploaded object `blob`, and return its row. The upload is deleted when no entry
    names it: the commit was refused, or the row has the blob of an earlier request. Raises the errors of `commit`."""
    try:
        row = await commit()
    except UNCOMMITTED:
        await delete(blob)
        raise
    if row["blob"] != blob:
        await delete(blob)
    return row


async def discard(store: ObjectStore, blob: str) -> None:
    """Delete the object `blob`, which no entry names. If the store is unavailable, `pseudoword gc` deletes it later."""
    try:
        await asyncio.to_thread(store.delete, blob)
    except StorageError as error:
        _logger.warning("blob not deleted", blob=blob, error=error.message)


def body_digest(request: Any) -> str:
    """Digest of the fields that must be equal when a request id is used again: all but request_id and validate_only."""
    body = type(request)()
    body.CopyFrom(request)
    for field in ("request_id", "validate_only"):
        if field in request.DESCRIPTOR.fields_by_name:
            body.ClearField(field)
    name: bytes = request.DESCRIPTOR.full_name.encode()
    return hashlib.sha256(name + b"\0" + body.SerializeToString(deterministic=True)).hexdigest()
