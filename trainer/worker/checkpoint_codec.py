"""A job's training state as bytes: a safetensors file with the scalars in its header. Nothing is pickled.

Floats are stored exactly (losses as float64, scalars as JSON, whose numbers Python reads back to the last bit), so a
resumed run makes the same steps bit for bit.
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
    """The bytes are no checkpoint, or a checkpoint of another format."""


def write_checkpoint(state: RunState) -> bytes:
    """`state` as bytes; equal states give equal bytes."""
    fields = asdict(state)
    arrays = {name: np.ascontiguousarray(fields.pop(name)) for name in _ARRAYS}
    data: bytes = save(arrays, metadata={"state": json.dumps({"format": _FORMAT, **fields}, sort_keys=True)})
    return data


def read_checkpoint(data: bytes) -> RunState:
    """The state that write_checkpoint has written. Raises CheckpointInvalid."""
    try:
        arrays = load(data)
        length = int.from_bytes(data[:8], "little")
        fields: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["state"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointInvalid(f"no checkpoint: {error}") from None
    if fields.pop("format", None) != _FORMAT or arrays.keys() != set(_ARRAYS):
        raise CheckpointInvalid("checkpoint of another format")
    try:
        return RunState(**arrays, **fields)
    except TypeError as error:
        raise CheckpointInvalid(f"no checkpoint of this format: {error}") from None
