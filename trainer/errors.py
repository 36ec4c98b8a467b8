"""Errors of training, independent of gRPC; `trainer.app.TABLE` maps them to gRPC errors at the edge.

    TrainingError
    ├── InitializerUnknown   a word to start from is not a single entry of the vocabulary
    ├── MaskEmpty            a mask selects no part of its picture
    └── Diverged             the loss or the vectors are no longer finite

Every error carries `reason` (UPPER_SNAKE, stable, for programs) and `metadata` (text to text).
"""


class TrainingError(Exception):
    """Base of all errors of training."""

    reason = "TRAINING"

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


class InitializerUnknown(TrainingError):
    reason = "START_UNKNOWN"


class MaskEmpty(TrainingError):
    reason = "MASK_EMPTY"


class Diverged(TrainingError):
    reason = "DIVERGED"
