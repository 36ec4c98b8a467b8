"""The errors of storage.

    StorageError
    ├── InvalidName          an object name that not every store can hold
    ├── BadAddress           a store address or its settings are invalid
    ├── BadRevision          a revision that does not parse, or names another shard
    │   ├── StoreChanged     a revision of another store: list again
    │   └── RevisionAhead    a revision that this log has not reached
    ├── ObjectExists         create-if-absent found the name taken (perhaps by an earlier attempt of the same put)
    ├── ObjectMissing        no object of that name
    ├── StoreRefused         the store refused the call, and nothing was written (credentials, bucket, full disk)
    ├── StoreUnavailable     no answer, or a temporary error; a write may or may not have taken effect. Retry
    ├── StoreUnfit           the store lacks a guarantee that the commit log needs; do not serve
    ├── StoreMismatch        the store was made for other use (another state machine, shard count or format)
    ├── StoreReplaced        the opened store was deleted or replaced by another one: open it again
    ├── Damaged              an object exists, and its content is wrong
    ├── ClockSkew            this machine's clock is too far from the store's to write
    ├── EntryTooLarge        one command's events do not fit one entry
    ├── EtagMismatch         a resource has changed since the caller read it: read it again
    ├── RequestIdReused      a request id was used again with another body
    ├── OutcomeUnknown       the deadline ended while a commit was in flight: repeat it with the same request id
    ├── NotCommitted         the deadline ended before the commit was tried: nothing was written. Retry
    ├── Contention           other writers won every round of the budget: nothing was written. Retry
    ├── ViewFailed           the view's file cannot be read or written (a full disk): nothing was committed. Retry
    ├── ViewInUse            another process uses this view folder
    ├── TensorsInvalid       not a safetensors file, or its tensors cannot be a word's vectors
    └── Closed               the ledger is closed

Every error carries `reason` (UPPER_SNAKE, stable, for programs) and `metadata` (text to text).
"""


class StorageError(Exception):
    """Base of all errors of storage. `retry`: whether the same call can succeed later, unchanged."""

    reason = "STORAGE"
    retry = False

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


class InvalidName(StorageError):
    reason = "INVALID_OBJECT_NAME"


class BadAddress(StorageError):
    reason = "BAD_STORE_ADDRESS"


class BadRevision(StorageError):
    reason = "BAD_REVISION"


class StoreChanged(BadRevision):
    reason = "STORE_CHANGED"


class RevisionAhead(BadRevision):
    reason = "REVISION_AHEAD"


class ObjectExists(StorageError):
    reason = "OBJECT_EXISTS"

    def __init__(self, name: str) -> None:
        super().__init__(f"object {name!r} already exists", object=name)


class ObjectMissing(StorageError):
    reason = "OBJECT_MISSING"

    def __init__(self, name: str) -> None:
        super().__init__(f"no object {name!r}", object=name)


class StoreRefused(StorageError):
    reason = "STORE_REFUSED"


class StoreUnavailable(StorageError):
    reason = "STORE_UNAVAILABLE"
    retry = True


class StoreUnfit(StorageError):
    reason = "STORE_UNFIT"

    def __init__(self, check: str, why: str) -> None:
        super().__init__(f"the store fails the check {check!r}: {why}", check=check)
        self.check = check


class StoreMismatch(StorageError):
    reason = "STORE_MISMATCH"


class StoreReplaced(StorageError):
    reason = "STORE_REPLACED"
    retry = True


class Damaged(StorageError):
    reason = "DAMAGED"

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"object {name!r} is damaged: {why}", object=name)


class ClockSkew(StorageError):
    reason = "CLOCK_SKEW"
    retry = True


class EntryTooLarge(StorageError):
    reason = "ENTRY_TOO_LARGE"


class EtagMismatch(StorageError):
    reason = "ETAG_MISMATCH"

    def __init__(self, resource: str, present: str) -> None:
        super().__init__(f"{resource} has changed since it was read: read it again", resource=resource, etag=present)


class RequestIdReused(StorageError):
    reason = "REQUEST_ID_REUSED"


class OutcomeUnknown(StorageError):
    reason = "OUTCOME_UNKNOWN"
    retry = True


class NotCommitted(StorageError):
    reason = "NOT_COMMITTED"
    retry = True


class Contention(StorageError):
    reason = "CONTENTION"
    retry = True


class ViewFailed(StorageError):
    reason = "VIEW_FAILED"
    retry = True


class ViewInUse(StorageError):
    reason = "VIEW_IN_USE"


class TensorsInvalid(StorageError):
    """`reason` is one of NOT_SAFETENSORS, FILE_TOO_LARGE, HEADER_TOO_LARGE, DUPLICATE_KEY, TENSOR_COUNT, TENSOR_NAME,
    TENSOR_DTYPE, TENSOR_SHAPE, NOT_FINITE."""

    reason = "TENSORS_INVALID"

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class Closed(StorageError):
    reason = "CLOSED"
    retry = True
