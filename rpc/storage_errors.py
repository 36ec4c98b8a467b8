"""Maps the errors of storage to rpc errors. Servers extend the table with their own rows."""

from pseudoword.names import InvalidName

from rpc.errors import (
    Aborted,
    DataLoss,
    ErrorTable,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    OutOfRange,
    Unavailable,
)
from storage import errors as storage

STORAGE = ErrorTable(
    {
        InvalidName: InvalidArgument,
        storage.InvalidName: InvalidArgument,
        storage.BadRevision: InvalidArgument,
        storage.StoreChanged: OutOfRange,
        storage.RevisionAhead: OutOfRange,
        storage.EntryTooLarge: InvalidArgument,
        storage.RequestIdReused: InvalidArgument,
        storage.TensorsInvalid: InvalidArgument,
        # Neither the caller nor a retry can help: the operator must change the deployment.
        storage.BadAddress: FailedPrecondition,
        storage.StoreRefused: FailedPrecondition,
        storage.StoreUnfit: FailedPrecondition,
        storage.StoreMismatch: FailedPrecondition,
        storage.ViewInUse: FailedPrecondition,
        storage.ObjectExists: Aborted,
        # Names of objects come from the log, never from a caller: a missing object is lost data.
        storage.ObjectMissing: DataLoss,
        storage.Damaged: DataLoss,
        # The caller should repeat the same call with the same request id: UNAVAILABLE means this, whereas ABORTED asks
        # the caller to read again first.
        storage.StoreUnavailable: Unavailable,
        storage.StoreReplaced: Unavailable,
        storage.ClockSkew: Unavailable,
        storage.OutcomeUnknown: Unavailable,
        storage.NotCommitted: Unavailable,
        storage.ViewFailed: Unavailable,
        storage.Closed: Unavailable,
        # A lost race, ABORTED by the API's contract: nothing was written, and the call can be repeated.
        storage.Contention: Aborted,
        storage.EtagMismatch: Aborted,
        storage.StorageError: Internal,
    }
)
