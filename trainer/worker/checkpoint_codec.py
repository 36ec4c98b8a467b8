"""A job's training as bytes: a safetensors file with the numbers in its header. Nothing is ever pickled.

Floats are kept as they are (losses as float64, scalars as JSON, whose numbers Python reads back to the last bit), so
what is read goes on exactly as what was written would have.
"""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from trainer.training.run import RunState

_FORMAT = 2
_ARRAYS = ("vectors", "start", "first_moments", "second_moments", "gradient", "losses")


class CheckpointInvalid(ValueError):
    """Bytes that are no checkpoint, or one of another format."""


def write_checkpoint(state: RunState) -> bytes:
    """`state` as bytes; equal states give equal bytes."""
    fields = asdict(state)
    arrays = {name: np.ascontiguousarray(fields.pop(name)) for name in _ARRAYS}
    data: bytes = save(arrays, metadata={"state": json.dumps({"format": _FORMAT, **fields}, sort_keys=True)})
    return data


def read_checkpoint(data: bytes) -> RunState:
    """What write_checkpoint wrote. Raises CheckpointInvalid."""
    try:
        arrays = load(data)
        length = int.from_bytes(data[:8], "little")
        fields: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["state"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointInvalid(f"it is no checkpoint: {error}") from None
    if fields.pop("format", None) != _FORMAT or arrays.keys() != set(_ARRAYS):
        raise CheckpointInvalid("it is a checkpoint of another format")
    try:
        return RunState(**arrays, **fields)
    except TypeError as error:
        raise CheckpointInvalid(f"it is no checkpoint of this format: {error}") from None
