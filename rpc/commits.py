"""How an rpc's change becomes an entry of a ledger: the caller's request id, principal and deadline with it."""

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

# A commit that raises one of these has committed nothing: what was uploaded for it can be deleted.
UNCOMMITTED = (Error, Contention, EntryTooLarge, NotCommitted, RequestIdReused)


_logger = structlog.get_logger(__name__)


async def commit(
    ledger: Ledger[_C], shard: int, tenant: str, command: _C, request: Any, context: Any, *, longest: timedelta
) -> Result:
    """Decide and keep `command`, which `request` asks for: its request_id, where it has one that is not empty, makes a
    repetition harmless, and validate_only changes nothing.

    A commit that takes longer than the caller's deadline, or `longest`, is told in time to be answered. Raises what the
    state machine refuses with, and StorageErrors.
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
    """Decide and keep `command`, which the server makes by itself as `actor`, tried until the store takes it; each try
    takes no longer than `longest`. Raises what the state machine refuses with, Closed and StoreReplaced."""
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
    """The row that `commit` gives, which names the uploaded object `blob`; an upload that no entry names in the end is
    deleted: the commit was refused, or the row has the blob of an earlier request. Raises what `commit` raises."""
    try:
        row = await commit()
    except UNCOMMITTED:
        await delete(blob)
        raise
    if row["blob"] != blob:
        await delete(blob)
    return row


async def discard(store: ObjectStore, blob: str) -> None:
    """Deletes the object `blob`, which no entry names. If the store is unavailable it is left to `pseudoword gc`."""
    try:
        await asyncio.to_thread(store.delete, blob)
    except StorageError as error:
        _logger.warning("a blob was not deleted", blob=blob, error=error.message)


def body_digest(request: Any) -> str:
    """What must be the same for a request id to mean the same request."""
    body = type(request)()
    body.CopyFrom(request)
    for field in ("request_id", "validate_only"):
        if field in request.DESCRIPTOR.fields_by_name:
            body.ClearField(field)
    name: bytes = request.DESCRIPTOR.full_name.encode()
    return hashlib.sha256(name + b"\0" + body.SerializeToString(deterministic=True)).hexdigest()
