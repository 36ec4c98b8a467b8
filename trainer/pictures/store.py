"""Uploaded pictures: received in chunks, checked before they are decoded, kept until they expire."""

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from PIL import Image
from pseudoword.names import PictureName, TenantName
from pseudoword.trainer.v1 import trainer_pb2

from diffusion.errors import PictureInvalid
from diffusion.pictures import PictureInfo, PictureLimits, picture_info, read_mask, read_picture
from rpc.commits import commit_blob, discard
from rpc.errors import InvalidArgument, NotFound, ResourceExhausted
from rpc.identity import Role, current_principal
from rpc.retry import retry_while_unavailable
from rpc.validate import Violations
from storage.objects.base import ObjectStore
from storage.objects.blobs import Blobs
from trainer.jobs import retention
from trainer.jobs.commands import AddPicture, DeletePicture
from trainer.jobs.job_store import Context, JobStore
from trainer.jobs.state_machine import SHARD
from trainer.jobs.tables import Row

MAX_CHUNK_BYTES = 2**20
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_SWEEP_INTERVAL = timedelta(minutes=10)
_SWEEP_BATCH = 256
Requests = AsyncIterator[trainer_pb2.UploadPictureRequest]


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """Which pictures are accepted, and how long they are kept. `max_receiving_bytes` limits the total size of all
    uploads in progress."""

    limits: PictureLimits
    lifetime: timedelta
    max_receiving_bytes: int


class PictureStore:
    """The pictures of all tenants. Lives on the server's event loop."""

    def __init__(self, job_store: JobStore, store: ObjectStore, upload_limits: UploadLimits) -> None:
        self._job_store = job_store
        self._store = store
        self._blobs = Blobs(store)
        self._upload_limits = upload_limits
        self._receiving_bytes = 0
        # A decoded picture takes many times the memory of its file, so few are decoded at the same time.
        self._decoding = asyncio.Semaphore(2)

    async def upload(self, requests: Requests, context: Context) -> Row:
        """Receives and stores one picture. A failed upload leaves nothing behind.

        Raises InvalidArgument, PictureInvalid, PermissionDenied, ResourceExhausted and StorageErrors.
        """
        header, tenant = await self._header(requests)
        received = bytearray()
        try:
            async for request in requests:
                self._receive(received, request, header.size_bytes)
            data = bytes(received)
        finally:
            self._receiving_bytes -= len(received)
        digest = _checked_digest(data, header)
        async with self._decoding:
            info = await asyncio.to_thread(_check, data, self._upload_limits.limits)
        return await self._keep(tenant, digest, data, info, header, context)

    async def read(self, name: str) -> Image.Image:
        """A picture as upright sRGB; while the store is unavailable this waits. Raises NotFound, Damaged,
        PictureInvalid."""
        return await self._read(name, read_picture)

    async def read_mask(self, name: str) -> Image.Image:
        """A mask as upright greys, white where it selects; as `read`."""
        return await self._read(name, read_mask)

    async def _read(self, name: str, decode: Callable[[bytes, PictureLimits], Image.Image]) -> Image.Image:
        row = await retry_while_unavailable(lambda: self._job_store.picture(name))
        data = await retry_while_unavailable(lambda: asyncio.to_thread(self._blobs.get, row["blob"]))
        async with self._decoding:
            return await asyncio.to_thread(decode, data, self._upload_limits.limits)

    async def delete(self, name: PictureName, request: Any, context: Context) -> None:
        """Deletes a picture and its bytes. Raises NotFound, FailedPrecondition, StorageErrors."""
        row = await self._job_store.commit(name.tenant, DeletePicture(name=str(name)), request, context)
        await discard(self._store, row["blob"])

    async def sweep(self) -> None:
        """Deletes pictures that have expired and that no unfinished job needs, until cancelled."""
        while True:
            names = await retry_while_unavailable(self._expired)
            for name in names:
                tenant = PictureName.parse(name).tenant
                with suppress(NotFound):  # another server sweeps too
                    row = await self._job_store.commit_own(DeletePicture(name=name, expired=True), tenant)
                    if row:
                        await discard(self._store, row["blob"])
            if len(names) < _SWEEP_BATCH:
                await asyncio.sleep(_SWEEP_INTERVAL.total_seconds())

    async def _expired(self) -> list[str]:
        now_us = time.time_ns() // 1000
        names, _ = await self._job_store.ledger.read(
            SHARD, lambda db: retention.expired_pictures(db, now_us, _SWEEP_BATCH), max_staleness=_SWEEP_INTERVAL
        )
        return names

    async def _header(self, requests: Requests) -> tuple[trainer_pb2.UploadPictureRequest.Header, TenantName]:
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("message") != "header":
            raise InvalidArgument(
                "an upload must begin with a header",
                reason="UPLOAD_HEADER",
                violations=[("header", "is required first")],
            )
        header = first.header
        wrong = Violations()
        tenant = wrong.name(TenantName, header.parent, "header.parent")
        current_principal().require(tenant.tenant, Role.WRITER)
        if header.size_bytes < 0:
            wrong.add("header.size_bytes", "must not be negative")
        if header.sha256 and not _DIGEST.fullmatch(header.sha256):
            wrong.add("header.sha256", "must be 64 hex digits, or empty")
        wrong.raise_if_any()
        if header.size_bytes > self._upload_limits.limits.max_bytes:
            raise self._too_large(header.size_bytes)
        return header, tenant

    def _receive(self, received: bytearray, request: trainer_pb2.UploadPictureRequest, announced_bytes: int) -> None:
        if request.WhichOneof("message") != "chunk":
            raise InvalidArgument(
                "after its header an upload must have chunks only",
                reason="UPLOAD_HEADER",
                violations=[("header", "must be sent once")],
            )
        size = len(request.chunk)
        if size > MAX_CHUNK_BYTES:
            raise InvalidArgument(
                f"a chunk has {size} bytes; the limit is {MAX_CHUNK_BYTES}",
                reason="CHUNK_TOO_LARGE",
                violations=[("chunk", f"at most {MAX_CHUNK_BYTES} bytes")],
            )
        total = len(received) + size
        if total > self._upload_limits.limits.max_bytes:
            raise self._too_large(total)
        if announced_bytes and total > announced_bytes:
            raise _wrong_size(total, announced_bytes)
        if self._receiving_bytes + size > self._upload_limits.max_receiving_bytes:
            raise ResourceExhausted(
                "too many bytes of uploads in progress: try again",
                reason="UPLOADS_BUSY",
                retry_after=timedelta(seconds=2),
            )
        received += request.chunk
        self._receiving_bytes += size

    def _too_large(self, size: int) -> PictureInvalid:
        return PictureInvalid(
            f"the picture has at least {size} bytes; the limit is {self._upload_limits.limits.max_bytes}",
            reason="PICTURE_TOO_LARGE",
        )

    async def _keep(
        self,
        tenant: TenantName,
        digest: str,
        data: bytes,
        info: PictureInfo,
        header: trainer_pb2.UploadPictureRequest.Header,
        context: Context,
    ) -> Row:
        blob = await asyncio.to_thread(self._blobs.put, tenant.tenant, data)
        command = AddPicture(
            name=str(PictureName(tenant.tenant, digest)),
            blob=blob.name,
            media_type=info.media_type,
            size_bytes=len(data),
            width=info.width,
            height=info.height,
            lifetime_us=round(self._upload_limits.lifetime.total_seconds() * 1e6),
        )
        return await commit_blob(
            blob.name,
            lambda: self._job_store.commit(tenant.tenant, command, header, context),
            lambda name: discard(self._store, name),
        )


def _check(data: bytes, limits: PictureLimits) -> PictureInfo:
    info = picture_info(data, limits)
    read_picture(data, limits)  # raises if the header is valid and the data is not
    return info


def _checked_digest(data: bytes, header: trainer_pb2.UploadPictureRequest.Header) -> str:
    if header.size_bytes and len(data) != header.size_bytes:
        raise _wrong_size(len(data), header.size_bytes)
    digest = hashlib.sha256(data).hexdigest()
    if header.sha256 and header.sha256.lower() != digest:
        raise InvalidArgument(
            f"the received bytes have the sha256 {digest}, not the announced one: upload the picture again",
            reason="DIGEST_MISMATCH",
            metadata={"sha256": digest},
            violations=[("header.sha256", "is not the sha256 of all chunks together")],
        )
    return digest


def _wrong_size(size: int, announced: int) -> InvalidArgument:
    return InvalidArgument(
        f"received {size} bytes, and the header announced {announced}: upload the picture again",
        reason="SIZE_MISMATCH",
        violations=[("header.size_bytes", "is not the size of the chunks together")],
    )
