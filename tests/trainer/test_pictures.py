"""Uploads of pictures over gRPC: valid and invalid pictures, and clients that cancel."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from pseudoword.trainer.v1 import trainer_pb2
from pseudoword.trainer.v1.trainer_pb2 import UploadPictureRequest

from tests.trainer.conftest import REX, Running, Start, encoded, fields, refusal
from trainer.pictures.store import MAX_CHUNK_BYTES

Header = UploadPictureRequest.Header
HEADER = UploadPictureRequest(header=Header(parent="tenants/default"))


def noise(width: int = 40, height: int = 24, mode: str = "RGB") -> Image.Image:
    channels = {"RGB": 3, "RGBA": 4, "CMYK": 4, "L": 1}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode=None if mode != "CMYK" else "CMYK")


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # upright only after a quarter turn
    return encoded(noise(), "JPEG", exif=exif)


def sixteen_bits() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 2**16, (24, 40), dtype=np.uint16)
    return encoded(Image.fromarray(pixels))


GOOD: dict[str, tuple[Callable[[], bytes], str, tuple[int, int]]] = {
    "png": (lambda: encoded(noise()), "image/png", (40, 24)),
    "jpeg": (lambda: encoded(noise(), "JPEG"), "image/jpeg", (40, 24)),
    "webp": (lambda: encoded(noise(), "WEBP"), "image/webp", (40, 24)),
    "cmyk": (lambda: encoded(noise(mode="CMYK"), "JPEG"), "image/jpeg", (40, 24)),
    "grey": (lambda: encoded(noise(mode="L")), "image/png", (40, 24)),
    "transparent": (lambda: encoded(noise(mode="RGBA")), "image/png", (40, 24)),
    "16 bits": (sixteen_bits, "image/png", (40, 24)),
    "turned by exif": (turned, "image/jpeg", (24, 40)),
}
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "PICTURE_EMPTY"),
    "text": (lambda: b"a picture of rex " * 40, "PICTURE_FORMAT"),
    "gif": (lambda: encoded(noise(), "GIF"), "PICTURE_FORMAT"),
    "truncated png": (lambda: encoded(noise(200, 200))[:-4000], "PICTURE_DAMAGED"),
    "truncated jpeg": (lambda: encoded(noise(200, 200), "JPEG")[:-2000], "PICTURE_DAMAGED"),
    "corrupt": (lambda: bytes(b ^ (i > 100 and i % 7 == 0) for i, b in enumerate(encoded(noise()))), "PICTURE_DAMAGED"),
    "animated": (
        lambda: encoded(noise(), "WEBP", save_all=True, append_images=[noise(mode="L").convert("RGB")]),
        "PICTURE_ANIMATED",
    ),
    "tiny": (lambda: encoded(noise(40, 8)), "PICTURE_TOO_SMALL"),
    # 2.5 MB that decode to 100 million pixels.
    "huge in pixels": (lambda: encoded(Image.new("1", (10_000, 10_000))), "PICTURE_TOO_LARGE"),
}


@pytest.mark.parametrize("kind", GOOD)
async def test_valid_pictures_are_stored_under_their_digest(trainer: Running, kind: str) -> None:
    make, media_type, size = GOOD[kind]
    data = make()
    picture = await trainer.upload(data, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest().upper())
    assert picture.name == f"tenants/default/pictures/{hashlib.sha256(data).hexdigest()}"
    assert (picture.media_type, picture.width, picture.height) == (media_type, *size)
    assert picture.size_bytes == len(data)
    days = (picture.expire_time.ToDatetime() - picture.create_time.ToDatetime()).total_seconds() / 86_400
    assert days == pytest.approx(7, abs=0.01)
    assert await trainer.stub.GetPicture(trainer_pb2.GetPictureRequest(name=picture.name)) == picture


@pytest.mark.parametrize("kind", BAD)
async def test_invalid_pictures_are_rejected_and_leave_no_blob(trainer: Running, kind: str, tmp_path: Path) -> None:
    make, reason = BAD[kind]
    data = make()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.upload(data)
    assert (refused.value.code(), refusal(refused.value).reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert blobs(tmp_path) == []


async def test_upload_over_the_limit_is_rejected_before_it_is_complete(start: Start, tmp_path: Path) -> None:
    trainer = await start(pictures={"max_bytes": 100_000})
    with pytest.raises(grpc.aio.AioRpcError) as announced:
        await trainer.upload(b"", size_bytes=100_001)
    assert refusal(announced.value).reason == "PICTURE_TOO_LARGE"
    sent = 0

    async def endless() -> AsyncIterator[UploadPictureRequest]:
        nonlocal sent
        yield HEADER
        while True:
            sent += 1
            yield UploadPictureRequest(chunk=bytes(10_000))

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.stub.UploadPicture(endless())
    assert refusal(refused.value).reason == "PICTURE_TOO_LARGE"
    assert blobs(tmp_path) == []


@pytest.mark.parametrize(
    ("header", "field"),
    [
        ({"size_bytes": 5}, "header.size_bytes"),
        ({"size_bytes": 10**6}, "header.size_bytes"),
        ({"sha256": "0" * 64}, "header.sha256"),
        ({"sha256": "rex"}, "header.sha256"),
        ({"size_bytes": -1}, "header.size_bytes"),
        ({"tenant": "Rex"}, "header.parent"),
    ],
)
async def test_picture_must_match_its_header(
    trainer: Running, header: dict[str, Any], field: str, tmp_path: Path
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.upload(REX[0], **header)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(refused.value) == {field}
    assert blobs(tmp_path) == []


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "UPLOAD_HEADER"),
        ([UploadPictureRequest()], "UPLOAD_HEADER"),
        ([UploadPictureRequest(chunk=REX[0])], "UPLOAD_HEADER"),
        ([HEADER, HEADER], "UPLOAD_HEADER"),
        ([HEADER, UploadPictureRequest(chunk=bytes(MAX_CHUNK_BYTES + 1))], "CHUNK_TOO_LARGE"),
        ([HEADER], "PICTURE_EMPTY"),
    ],
)
async def test_malformed_streams_of_messages_are_rejected(
    trainer: Running, messages: list[UploadPictureRequest], reason: str
) -> None:
    async def sent() -> AsyncIterator[UploadPictureRequest]:
        for message in messages:
            yield message

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.stub.UploadPicture(sent())
    assert (refused.value.code(), refusal(refused.value).reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)


async def test_cancelled_upload_leaves_no_blob(trainer: Running, tmp_path: Path) -> None:
    arrived = asyncio.Event()

    async def half() -> AsyncIterator[UploadPictureRequest]:
        yield HEADER
        yield UploadPictureRequest(chunk=REX[0][:1000])
        arrived.set()
        await asyncio.Event().wait()

    call = trainer.stub.UploadPicture(half())
    await arrived.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert blobs(tmp_path) == []
    assert (await trainer.upload(REX[0])).size_bytes == len(REX[0])


async def test_bytes_of_concurrent_uploads_are_limited(start: Start) -> None:
    trainer = await start(pictures={"max_receiving_bytes": 2**20})
    full, leave = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[UploadPictureRequest]:
        yield HEADER
        yield UploadPictureRequest(chunk=bytes(2**20 - 10))
        full.set()
        await leave.wait()

    first = trainer.stub.UploadPicture(slow())
    await full.wait()
    for _ in range(100):  # until the server has received what was sent
        try:
            await trainer.upload(REX[0])
        except grpc.aio.AioRpcError as error:
            busy = refusal(error)
            break
        await asyncio.sleep(0.05)
    assert (busy.code, busy.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "UPLOADS_BUSY")
    assert busy.retry_after is not None
    leave.set()
    with pytest.raises(grpc.aio.AioRpcError):
        await first
    await trainer.upload(REX[0])


async def test_the_same_bytes_are_the_same_picture(trainer: Running, tmp_path: Path) -> None:
    first = await trainer.upload(REX[0])
    again = await trainer.upload(REX[0])
    assert again.name == first.name
    assert again.create_time == first.create_time
    assert again.expire_time.ToNanoseconds() > first.expire_time.ToNanoseconds()
    assert len(blobs(tmp_path)) == 1
    other = await trainer.upload(REX[0], tenant="shop")
    assert other.name == first.name.replace("default", "shop")


async def test_deleting_a_picture_deletes_its_blob(trainer: Running, tmp_path: Path) -> None:
    picture = await trainer.upload(REX[0])
    assert [path.read_bytes() for path in blobs(tmp_path)] == [REX[0]]
    await trainer.stub.DeletePicture(trainer_pb2.DeletePictureRequest(name=picture.name))
    assert blobs(tmp_path) == []
    for call in (
        trainer.stub.GetPicture(trainer_pb2.GetPictureRequest(name=picture.name)),
        trainer.stub.DeletePicture(trainer_pb2.DeletePictureRequest(name=picture.name)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert (refused.value.code(), refusal(refused.value).reason) == (
            grpc.StatusCode.NOT_FOUND,
            "PICTURE_NOT_FOUND",
        )


async def test_expired_pictures_are_deleted_at_the_next_start(start: Start, tmp_path: Path) -> None:
    trainer = await start(pictures={"lifetime": "PT0.05S"})
    picture = await trainer.upload(REX[0])
    await asyncio.sleep(0.1)
    job = await trainer.job(pictures=0, examples=[{"picture": picture.name}])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.create(job)
    assert fields(refused.value) == {"job.examples[0].picture"}
    await start()
    for _ in range(200):
        if not blobs(tmp_path):
            break
        await asyncio.sleep(0.05)
    assert blobs(tmp_path) == []


def blobs(folder: Path) -> list[Path]:
    """The files of the blobs in the trainer's store."""
    return [path for path in (folder / "jobs" / "t").rglob("*") if path.is_file()]
