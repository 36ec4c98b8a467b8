"""Exceptions of a server as errors of its client."""

from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st
from pseudoword.errors import PseudowordError
from pseudoword.trainer.v1 import trainer_pb2

from rpc import errors, storage_errors
from storage import errors as storage
from tests.rpc.conftest import Serve

KINDS = errors.Error.__subclasses__()
TEXT = st.text(max_size=3_000)


@given(
    kind=st.sampled_from(KINDS),
    message=TEXT,
    metadata=st.dictionaries(st.text(max_size=80), TEXT, max_size=20),
    violations=st.lists(st.tuples(TEXT, TEXT), max_size=20),
    retry_s=st.none() | st.floats(-1, 1e6),
)
def test_every_error_fits_into_trailers(
    kind: type[errors.Error],
    message: str,
    metadata: dict[str, str],
    violations: list[tuple[str, str]],
    retry_s: float | None,
) -> None:
    retry_after = None if retry_s is None else timedelta(seconds=retry_s)
    status = errors.to_status(kind(message, metadata=metadata, violations=violations, retry_after=retry_after))
    trailers = len(status.message.encode()) * 3 + len(status.SerializeToString()) * 4 / 3
    assert trailers < 7_500, "grpc's clients refuse trailers above 8 KiB"
    assert status_pb2.Status.FromString(status.SerializeToString()) == status
    assert errors.from_status(status).code is kind.code


@given(kind=st.sampled_from(KINDS), text=st.text(max_size=50), retry_s=st.none() | st.integers(0, 3600))
def test_error_is_restored_from_its_status(kind: type[errors.Error], text: str, retry_s: int | None) -> None:
    retry_after = None if retry_s is None else timedelta(seconds=retry_s)
    error = kind(text, metadata={"concept": text}, violations=[(text, text)], retry_after=retry_after)
    again = errors.from_status(errors.to_status(error))
    assert type(again) is kind
    for attribute in ("message", "reason", "metadata", "violations", "retry_after"):
        assert getattr(again, attribute) == getattr(error, attribute)


class Tree:
    """Three exceptions that inherit from each other."""

    class A(Exception):
        pass

    class B(A):
        pass

    class C(B):
        pass


@given(rows=st.dictionaries(st.sampled_from([Tree.A, Tree.B, Tree.C]), st.sampled_from(KINDS)))
def test_the_most_specific_row_wins(rows: dict[Any, Any]) -> None:
    translated = errors.ErrorTable({}).extended(rows).translate(Tree.C("x"))
    expected = next((rows[kind] for kind in (Tree.C, Tree.B, Tree.A) if kind in rows), errors.Internal)
    assert type(translated) is expected


def test_every_storage_error_is_translated_and_not_internal() -> None:
    def below(kind: type[storage.StorageError]) -> set[type[storage.StorageError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    for kind in below(storage.StorageError) - {storage.StorageError}:
        error = kind.__new__(kind)
        storage.StorageError.__init__(error, "text", object="o")
        translated = storage_errors.STORAGE.translate(error)
        assert type(translated) is not errors.Internal, kind
        assert (translated.reason, translated.message, translated.metadata) == (kind.reason, "text", {"object": "o"})
        assert (translated.retry_after is not None) == kind.retry, "errors that may be repeated have a delay"


async def failure(serve: Serve, name: str) -> tuple[PseudowordError, dict[str, Any]]:
    stub = await (await serve()).stub()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.GetPicture(trainer_pb2.GetPictureRequest(name=name))
    return PseudowordError.from_call(raised.value), dict(raised.value.trailing_metadata() or ())


async def test_client_gets_all_violations(serve: Serve) -> None:
    error, trailers = await failure(serve, "invalid")
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    assert error.violations == (
        ("job.steps", "100001 is not between 1 and 100000"),
        ("job.concept", "contains the control character U+0007"),
    )
    assert "grpc-retry-pushback-ms" not in trailers


async def test_client_gets_retry_delay_and_pushback(serve: Serve) -> None:
    error, trailers = await failure(serve, "later")
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "QUEUE_FULL")
    assert error.retry_after == timedelta(seconds=2.5)
    assert trailers["grpc-retry-pushback-ms"] == "2500"


async def test_storage_errors_keep_reason_and_metadata(serve: Serve) -> None:
    error, _ = await failure(serve, "store")
    assert (error.code, error.reason, error.metadata) == (
        grpc.StatusCode.UNAVAILABLE,
        "STORE_UNAVAILABLE",
        {"store": "s3"},
    )


async def test_unexpected_exception_shows_only_an_incident_id(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    error, _ = await failure(serve, "bug")
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in str(error)
    lines = [line for line in capsys.readouterr().out.splitlines() if error.metadata["incident"] in line]
    assert lines, "the log has the incident"


async def test_missing_rpc_is_unimplemented(serve: Serve) -> None:
    stub = await (await serve()).stub()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.ListRecipes(trainer_pb2.ListRecipesRequest())
    error = PseudowordError.from_call(raised.value)
    assert (error.code, error.metadata) == (grpc.StatusCode.UNIMPLEMENTED, {"part": "ListRecipes"})
