"""What errors of storage become at the edge. Servers extend it with rows of their own."""

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
        # The caller can do nothing, and repeating does not help until somebody changes the deployment.
        storage.BadAddress: FailedPrecondition,
        storage.StoreRefused: FailedPrecondition,
        storage.StoreUnfit: FailedPrecondition,
        storage.StoreMismatch: FailedPrecondition,
        storage.ViewInUse: FailedPrecondition,
        storage.ObjectExists: Aborted,
        # Names of objects come from the log, never from a caller: one that is missing is lost.
        storage.ObjectMissing: DataLoss,
        storage.Damaged: DataLoss,
        # Repeating the very same call, with the same request id, is right for all of these; that is what
        # UNAVAILABLE says, where ABORTED would ask the caller to read again first.
        storage.StoreUnavailable: Unavailable,
        storage.StoreReplaced: Unavailable,
        storage.ClockSkew: Unavailable,
        storage.OutcomeUnknown: Unavailable,
        storage.NotCommitted: Unavailable,
        storage.ViewFailed: Unavailable,
        storage.Closed: Unavailable,
        # A lost race, as the contract has it: nothing was written, simply try again.
        storage.Contention: Aborted,
        storage.EtagMismatch: Aborted,
        storage.StorageError: Internal,
    }
)
