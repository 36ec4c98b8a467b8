"""PseudowordError: a failed call, read from the status details that every server of pseudoword sends."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


# Not frozen: Python itself writes an exception's traceback and context.
@dataclass(kw_only=True, eq=False)
class PseudowordError(Exception):
    """A failed call.

    `reason` is stable and meant for programs (`WORD_UNKNOWN`, `ETAG_MISMATCH`, ...; empty when the error comes from the
    network and not from a server), `message` is meant for people, `violations` are pairs of a field and the fault in
    it, and `retry_after` is the time to wait before a retry, None where a retry does not help.
    """

    code: grpc.StatusCode
    message: str
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[tuple[str, str], ...] = ()
    retry_after: timedelta | None = None

    @classmethod
    def from_call(cls, error: Any) -> Self:
        """Read google.rpc.ErrorInfo, BadRequest and RetryInfo from a failed call, a grpc.Call."""
        code, message = error.code(), error.details() or ""
        try:
            status = rpc_status.from_call(error)
        except ValueError:  # the details do not belong to this code: a proxy has changed the response
            status = None
        if status is None:
            return cls(code=code, message=message)
        return cls.from_status(status)

    @classmethod
    def from_status(cls, status: status_pb2.Status) -> Self:
        """Read a google.rpc.Status, as in failed jobs and unresolved words."""
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        retry_after = None
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(bad)
            if detail.Unpack(retry):
                retry_after = retry.retry_delay.ToTimedelta()
        return cls(
            code=_CODES[status.code],
            message=status.message,
            reason=info.reason,
            metadata=dict(info.metadata),
            violations=tuple((violation.field, violation.description) for violation in bad.field_violations),
            retry_after=retry_after,
        )

    def __str__(self) -> str:
        lines = [self.message or self.code.name]
        lines += [f"  {name}: {text}" for name, text in self.violations if text not in self.message]
        if self.retry_after is not None:
            lines.append(f"  try again in {self.retry_after.total_seconds():g} s")
        return "\n".join(lines)
