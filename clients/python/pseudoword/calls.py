"""Helpers for calls of any service: errors, pages of lists, and watches that reconnect."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from pseudoword.errors import PseudowordError


@contextmanager
def errors() -> Iterator[None]:
    """Turn grpc.RpcError into PseudowordError."""
    try:
        yield
    except grpc.RpcError as error:
        raise PseudowordError.from_call(error) from None


def pages(call: Callable[[Any], Any], request: Any) -> Iterator[Any]:
    """The pages of a List call, from that of `request` on."""
    while True:
        with errors():
            page = call(request)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def patient(watch: Callable[[], Iterator[Any]], patience_s: float) -> Iterator[Any]:
    """The messages of a watch. It is opened again when it ends, and while its server is unavailable, up to
    `patience_s`."""
    unavailable_since: float | None = None
    while True:
        try:
            with errors():
                for message in watch():
                    unavailable_since = None
                    yield message
        except PseudowordError as error:
            if error.code is not grpc.StatusCode.UNAVAILABLE:
                raise
            unavailable_since = unavailable_since or time.monotonic()
            if time.monotonic() - unavailable_since > patience_s:
                raise
        time.sleep(0.5)
