"""Calls of any service: their failures, pages of lists, and watches that outlive a server."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from pseudoword.errors import PseudowordError


@contextmanager
def errors() -> Iterator[None]:
    """Turns grpc.RpcError into PseudowordError."""
    try:
        yield
    except grpc.RpcError as error:
        raise PseudowordError.from_call(error) from None


def pages(call: Callable[[Any], Any], request: Any) -> Iterator[Any]:
    """The pages of a List call, from the request's own on."""
    while True:
        with errors():
            page = call(request)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def patient(watch: Callable[[], Iterator[Any]], patience_s: float) -> Iterator[Any]:
    """The messages of a watch, which is opened again when it ends and while its server is away for `patience_s`."""
    away_since: float | None = None
    while True:
        try:
            with errors():
                for message in watch():
                    away_since = None
                    yield message
        except PseudowordError as error:
            if error.code is not grpc.StatusCode.UNAVAILABLE:
                raise
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > patience_s:
                raise
        time.sleep(0.5)
