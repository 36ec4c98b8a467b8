"""The parts of the client that need no server, and its errors without a server."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from PIL import Image
from pseudoword.channel import Endpoints, connect
from pseudoword.client import Client, published
from pseudoword.errors import PseudowordError
from pseudoword.generation.v1 import generation_pb2
from pseudoword.names import InvalidName
from pseudoword.picture import pictures
from pseudoword.sheet import Tile, contact_sheet
from pseudoword.trainer.v1 import resources_pb2


def status(*details: object) -> status_pb2.Status:
    made = status_pb2.Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message="full")
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)  # type: ignore[arg-type]
        made.details.append(packed)
    return made


def test_error_has_all_details_of_a_status() -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromTimedelta(timedelta(seconds=2.5))
    violation = error_details_pb2.BadRequest.FieldViolation(field="a.b", description="is wrong")
    error = PseudowordError.from_status(
        status(
            error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="pseudoword", metadata={"k": "v"}),
            error_details_pb2.BadRequest(field_violations=[violation]),
            retry,
        )
    )
    assert (error.code, error.reason, error.metadata) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", {"k": "v"})
    assert error.violations == (("a.b", "is wrong"),)
    assert error.retry_after == timedelta(seconds=2.5)
    assert str(error).splitlines() == ["full", "  a.b: is wrong", "  try again in 2.5 s"]


def test_an_error_passes_through_context_managers() -> None:
    @contextmanager
    def around() -> Iterator[None]:
        yield

    error = PseudowordError(code=grpc.StatusCode.NOT_FOUND, message="no")
    with pytest.raises(PseudowordError) as caught, around():
        raise error
    assert caught.value is error


def test_unreachable_server_is_unavailable() -> None:
    with Client(Endpoints(registry="127.0.0.1:1")) as client, pytest.raises(PseudowordError) as caught:
        list(client.words())
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "")


def test_token_is_not_sent_to_another_machine_without_tls() -> None:
    with pytest.raises(ValueError, match="without TLS"):
        connect("10.0.0.1:7361", Endpoints(token="secret"))  # noqa: S106
    connect("127.0.0.1:1", Endpoints(token="secret")).close()  # noqa: S106


def test_client_rejects_malformed_names_without_a_call() -> None:
    with pytest.raises(InvalidName):
        Client(tenant="Shop")
    with Client() as client, pytest.raises(InvalidName):
        client.concept("Rex")


def test_chunks_become_pictures_in_order() -> None:
    def chunk(index: int, data: bytes, *, last: bool = False) -> generation_pb2.GenerateResponse:
        info = generation_pb2.PictureInfo(media_type="image/png") if last else None
        return generation_pb2.GenerateResponse(chunk=generation_pb2.PictureChunk(index=index, data=data, info=info))

    events = [
        generation_pb2.GenerateResponse(accepted=generation_pb2.Accepted()),
        chunk(1, b"c", last=True),
        chunk(0, b"a"),
        chunk(0, b"b", last=True),
        chunk(2, b"unfinished"),
    ]
    assert [(picture.index, picture.data) for picture in pictures(events)] == [(0, b"ab"), (1, b"c")]


def test_published_is_the_result_of_an_ended_job_or_its_error() -> None:
    job = resources_pb2.Job(name="tenants/a/jobs/b", state=resources_pb2.Job.STATE_SUCCEEDED, version="v")
    assert published(job) == "v"
    written = resources_pb2.Job(state=job.state, evaluates="v", evaluation="e")
    assert published(written) == "e"
    job.state = resources_pb2.Job.STATE_CANCELLED
    with pytest.raises(PseudowordError) as caught:
        published(job)
    assert caught.value.reason == "JOB_CANCELLED"
    job.state = resources_pb2.Job.STATE_FAILED
    job.error.CopyFrom(status(error_details_pb2.ErrorInfo(reason="DIVERGED")))
    with pytest.raises(PseudowordError) as caught:
        published(job)
    assert caught.value.reason == "DIVERGED"


def test_a_contact_sheet_shows_every_picture(tmp_path: Path) -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    tiles = [Tile(image=Image.new("RGB", (8, 6), colour), caption="a caption " * 20) for colour in colours]
    sheet = contact_sheet([tiles, tiles[:1]], tile_px=64, title="title")
    sheet.save(tmp_path / "sheet.png")
    seen = {colour for _, colour in Image.open(tmp_path / "sheet.png").getcolors(10**6) or []}
    assert set(colours) <= seen
