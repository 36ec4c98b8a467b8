"""The errors of an rpc, as its client sees them.

    Error
    ├── InvalidArgument      the request is invalid in any state: fix it
    ├── NotFound             no such resource
    ├── AlreadyExists        the name is taken
    ├── FailedPrecondition   valid request, wrong state: change the state first
    ├── Aborted              a lost race: read again, then decide
    ├── PermissionDenied     authenticated caller, not allowed
    ├── Unauthenticated      unknown caller
    ├── ResourceExhausted    a quota or a full queue; retry_after is the time to wait
    ├── Unavailable          temporarily impossible; retry_after is the time to wait
    ├── DeadlineExceeded     the caller's deadline has passed
    ├── OutOfRange           a page, revision or position that has expired or does not exist yet
    ├── DataLoss             stored data is damaged
    ├── Unimplemented        this server does not have the rpc
    ├── Cancelled            the caller cancelled
    └── Internal             a fault of the server

`reason` is stable and for programs, `message` is for people. Other packages (storage, diffusion) have their own errors;
an ErrorTable maps them to these.
"""

import base64
import secrets
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, ClassVar

import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "pseudoword"

# A gRPC client refuses trailers above 8 KiB. The message is sent twice: in grpc-message, where each byte may become
# three, and in the status, which base64 makes a third longer.
MAX_MESSAGE_BYTES = 1_000
MAX_STATUS_BYTES = 3_000
_MAX_TEXT_BYTES = 400  # of one violation, one metadata value

_DEFAULT_RETRY = timedelta(seconds=1)


class Error(Exception):
    """A failed rpc.

    metadata: facts about the failure, text to text; violations: pairs of a request field and the fault in it;
    retry_after: how long to wait before the same request can succeed, None where waiting does not help.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    reason: str = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Iterable[tuple[str, str]] = (),
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after = retry_after


class InvalidArgument(Error):
    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"


class NotFound(Error):
    code = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExists(Error):
    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class FailedPrecondition(Error):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class Aborted(Error):
    code = grpc.StatusCode.ABORTED
    reason = "ABORTED"


class PermissionDenied(Error):
    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class Unauthenticated(Error):
    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class ResourceExhausted(Error):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"


class Unavailable(Error):
    code = grpc.StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"


class DeadlineExceeded(Error):
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class OutOfRange(Error):
    code = grpc.StatusCode.OUT_OF_RANGE
    reason = "OUT_OF_RANGE"


class DataLoss(Error):
    code = grpc.StatusCode.DATA_LOSS
    reason = "DATA_LOSS"


class Unimplemented(Error):
    """`metadata["part"]` names the rpc."""

    code = grpc.StatusCode.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"


class Cancelled(Error):
    code = grpc.StatusCode.CANCELLED
    reason = "CANCELLED"


class Internal(Error):
    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"


class ErrorTable:
    """Maps exceptions of other packages to Errors; the most specific class wins."""

    def __init__(self, rows: Mapping[type[BaseException], type[Error]]) -> None:
        self._rows = dict(rows)

    def extended(self, rows: Mapping[type[BaseException], type[Error]]) -> "ErrorTable":
        """A table with `rows` added; an existing row of the same class is replaced."""
        return ErrorTable({**self._rows, **rows})

    def translate(self, exception: BaseException) -> Error:
        """The Error that the caller gets for `exception`.

        Takes message, reason, metadata, violations and retry_after from the exception where it has them. An exception
        without a row becomes Internal without its text; the exception and its traceback are logged under an incident
        number that the caller gets in metadata["incident"].
        """
        if isinstance(exception, Error):
            return exception
        kind = next((self._rows[parent] for parent in type(exception).__mro__ if parent in self._rows), None)
        if kind is None:
            return _incident(exception)
        return kind(
            _attribute(exception, "message", str, str(exception)),
            reason=_attribute(exception, "reason", str, None),
            metadata={str(key): str(value) for key, value in _attribute(exception, "metadata", Mapping, {}).items()},
            violations=_attribute(exception, "violations", tuple, ()),
            retry_after=_attribute(exception, "retry_after", timedelta, _default_retry(kind, exception)),
        )


def error_text(error: Error) -> str:
    """An error as text for a row of a view; read_error_text is the inverse."""
    return base64.b64encode(to_status(error).SerializeToString()).decode()


def read_error_text(text: str, status: status_pb2.Status) -> None:
    """Fill `status` from the text of error_text."""
    status.ParseFromString(base64.b64decode(text))


def to_status(error: Error) -> status_pb2.Status:
    """The google.rpc.Status of `error`, with ErrorInfo, BadRequest if there are violations, and RetryInfo if there is a
    retry_after.

    Long texts are truncated. Until the status fits MAX_STATUS_BYTES, details are dropped: violations from the last,
    then metadata.
    """
    metadata = {_clip(key, 64): _clip(value, _MAX_TEXT_BYTES) for key, value in error.metadata.items()}
    violations = [
        error_details_pb2.BadRequest.FieldViolation(
            field=_clip(field, _MAX_TEXT_BYTES), description=_clip(text, _MAX_TEXT_BYTES)
        )
        for field, text in error.violations
    ]
    while True:
        status = _status(error, metadata, violations)
        if status.ByteSize() <= MAX_STATUS_BYTES:
            return status
        if violations:
            violations.pop()
        else:
            metadata.popitem()


def from_status(status: status_pb2.Status) -> Error:
    """The Error in `status`, to raise a stored failure or a peer's error again."""
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    retry_after = None
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta()
    kind = next((kind for kind in Error.__subclasses__() if kind.code.value[0] == status.code), Internal)
    return kind(
        status.message,
        reason=info.reason or None,
        metadata=info.metadata,
        violations=[(violation.field, violation.description) for violation in bad.field_violations],
        retry_after=retry_after,
    )


def _status(
    error: Error, metadata: Mapping[str, str], violations: list[error_details_pb2.BadRequest.FieldViolation]
) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason=_clip(error.reason, 63), domain=DOMAIN, metadata=metadata)
    details: list[Any] = [info]
    if violations:
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(max(error.retry_after, timedelta(0)))
        details.append(retry)
    status = status_pb2.Status(code=error.code.value[0], message=_clip(error.message, MAX_MESSAGE_BYTES))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _incident(exception: BaseException) -> Internal:
    # From `secrets`, not `random`: incidents of replicas with the same random state must differ.
    incident = secrets.token_hex(6)
    structlog.get_logger("rpc").error("unhandled exception", incident=incident, exc_info=exception)
    return Internal(
        f"the server had an internal error; its log has the details under incident {incident}",
        metadata={"incident": incident},
    )


def _default_retry(kind: type[Error], exception: BaseException) -> timedelta | None:
    waits = issubclass(kind, Unavailable | ResourceExhausted | Aborted) and getattr(exception, "retry", False)
    return _DEFAULT_RETRY if waits else None


def _attribute(exception: BaseException, name: str, kind: type, default: Any) -> Any:
    value = getattr(exception, name, None)
    return value if isinstance(value, kind) else default


def _clip(text: str, limit_bytes: int) -> str:
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit_bytes:
        return encoded.decode("utf-8")
    return encoded[: limit_bytes - 3].decode("utf-8", "ignore") + "..."
