"""The errors of the base model and of its inputs.

    DiffusionError
    ├── CheckpointInvalid    a checkpoint is missing, or its kind is not supported
    ├── PromptTooLong        a prompt takes more positions than the text encoder has
    ├── WeightInvalid        what looks like a weight in a prompt is not one
    ├── SchedulerUnknown     no scheduler of that name
    ├── PictureInvalid       an upload is not a usable picture
    ├── DenoiserUnavailable  the remote denoiser is unavailable, overloaded or too slow: retry later
    └── DenoiserRefused      the remote denoiser refused the call: a retry does not help

Every error carries `reason` (UPPER_SNAKE, stable, for programs) and `metadata` (text to text).
"""


class DiffusionError(Exception):
    """Base of all errors of diffusion."""

    reason = "DIFFUSION"

    def __init__(self, message: str, *, reason: str | None = None, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata
        if reason is not None:
            self.reason = reason


class CheckpointInvalid(DiffusionError):
    reason = "CHECKPOINT_INVALID"


class PromptTooLong(DiffusionError):
    reason = "PROMPT_TOO_LONG"

    def __init__(self, needed: int, limit: int) -> None:
        super().__init__(
            f"the prompt takes {needed} positions of the text encoder, start and end included, and the encoder has "
            f"{limit}: shorten the prompt, or use words with fewer vectors",
            needed=str(needed),
            limit=str(limit),
        )


class WeightInvalid(DiffusionError):
    reason = "WEIGHT_INVALID"

    def __init__(self, position: int, text: str, cause: str) -> None:
        super().__init__(
            f"has {text[:40]!r} at character {position}: {cause}; an ordinary bracket takes a backslash: \\(",
            position=str(position),
        )


class SchedulerUnknown(DiffusionError):
    reason = "SCHEDULER_UNKNOWN"


class PictureInvalid(DiffusionError):
    """`reason` is one of PICTURE_EMPTY, PICTURE_TOO_LARGE, PICTURE_TOO_SMALL, PICTURE_FORMAT, PICTURE_ANIMATED,
    PICTURE_DAMAGED."""

    reason = "PICTURE_INVALID"


class DenoiserUnavailable(DiffusionError):
    """`reason` is one of DENOISER_UNAVAILABLE, DENOISER_OVERLOADED, DENOISER_TIMEOUT."""

    reason = "DENOISER_UNAVAILABLE"
    retry = True


class DenoiserRefused(DiffusionError):
    reason = "DENOISER_REFUSED"
