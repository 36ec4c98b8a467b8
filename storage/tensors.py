"""Vectors as safetensors files: a strict reader, a deterministic writer, and a digest of the content.

The safetensors library accepts duplicate names, NaN, files without tensors, empty shapes and control characters in
names; this reader does not. Nothing is ever unpickled here.
"""

import hashlib
import json
import math
import re
import struct
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize

from storage.errors import TensorsInvalid

Vectors = npt.NDArray[np.float32]

# The size of the tensors alone, without the header: its metadata may hold a thumbnail or the workflow of the file.
MAX_FILE_BYTES = 2 * 2**20
MAX_HEADER_BYTES = 8 * 2**20
MAX_VECTORS = 75
MAX_DIMENSIONS = 16_384
# The number of the header's keys, counted before it is parsed: a parsed key takes many times its bytes.
_MAX_KEYS = 250_000
_MAX_TENSORS = 8
_MAX_NAME = 100
_METADATA = "__metadata__"
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
# The first bytes of a zip archive and of a pickle, the two formats of torch.save.
_PICKLE = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]")


def is_pickle(data: bytes) -> bool:
    """Whether `data` is a file of torch.save.

    The first bytes are ambiguous: a safetensors file begins with the length of its header, and a length of 640 looks
    like a pickle. A file with a JSON header is a safetensors file.
    """
    return _PICKLE.match(data) is not None and not _begins_with_header(data)


def read_tensors(data: bytes) -> dict[str, Vectors]:
    """The tensors of a safetensors file by name, each a separate fp32 array [vectors, dimensions], sorted by name.

    Accepts F32, F16 and BF16; 1 to 8 tensors of 1 to 75 vectors and up to 16,384 dimensions (of shape [dimensions]: one
    vector), finite numbers, names of 1 to 100 printable characters in NFC. Raises TensorsInvalid, whose `reason` names
    the fault.
    """
    _check_header(data)
    try:
        found = deserialize(data)  # type: ignore[no-untyped-call]
    except (SafetensorError, UnicodeDecodeError) as error:
        raise TensorsInvalid("NOT_SAFETENSORS", f"not a safetensors file: {str(error)[:200]}") from None
    return {name: _to_array(name, item) for name, item in sorted(found)}


def write_tensors(tensors: Mapping[str, npt.ArrayLike], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file of `tensors` as fp32. Equal arguments give equal bytes, in any order of the mapping.

    Does not check the limits of read_tensors.
    """
    arrays = {name: np.ascontiguousarray(tensors[name], dtype="<f4") for name in sorted(tensors)}
    header: dict[str, Any] = {}
    if metadata:
        header[_METADATA] = {key: metadata[key] for key in sorted(metadata)}
    offset = 0
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in arrays.values())


def tensors_digest(tensors: Mapping[str, npt.ArrayLike]) -> str:
    """sha256 (hex) over the tensors alone: independent of the file format that they were stored in.

    For each tensor, sorted by name: the name in UTF-8, a zero byte, the shape in decimal joined by commas, a zero byte,
    the numbers as little-endian fp32 in row-major order.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name], dtype="<f4")
        shape = ",".join(str(size) for size in array.shape)
        digest.update(f"{name}\0{shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _header_length(data: bytes) -> int | None:
    """The size of the header in bytes; None when `data` is shorter."""
    length = int.from_bytes(data[:8], "little")
    return length if len(data) >= 8 and length <= len(data) - 8 else None


def _begins_with_header(data: bytes) -> bool:
    """Whether `data` has a JSON object in the place of a safetensors header."""
    length = _header_length(data)
    return length is not None and length >= 2 and data[8:9] == b"{" and data[8 : 8 + length].rstrip(b" ")[-1:] == b"}"


def _check_header(data: bytes) -> None:
    if len(data) > 8 + MAX_HEADER_BYTES + MAX_FILE_BYTES:
        raise TensorsInvalid(
            "FILE_TOO_LARGE", f"it has {len(data)} bytes; at most {8 + MAX_HEADER_BYTES + MAX_FILE_BYTES} are allowed"
        )
    if is_pickle(data):
        raise TensorsInvalid("NOT_SAFETENSORS", "it is a pickle or a zip archive; give a safetensors file")
    length = _header_length(data)
    if length is None:
        raise TensorsInvalid("NOT_SAFETENSORS", "not a safetensors file, or truncated within its header")
    if length > MAX_HEADER_BYTES or data.count(b'":', 8, 8 + length) > _MAX_KEYS:
        raise TensorsInvalid(
            "HEADER_TOO_LARGE",
            f"its header has {length} bytes; at most {MAX_HEADER_BYTES} bytes and {_MAX_KEYS} keys are allowed",
        )
    if len(data) - 8 - length > MAX_FILE_BYTES:
        raise TensorsInvalid(
            "FILE_TOO_LARGE", f"its tensors have {len(data) - 8 - length} bytes; at most {MAX_FILE_BYTES} are allowed"
        )
    try:
        header = json.loads(data[8 : 8 + length].decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError):
        raise TensorsInvalid("NOT_SAFETENSORS", "its header is not JSON") from None
    if not isinstance(header, dict):
        raise TensorsInvalid("NOT_SAFETENSORS", "its header is not a JSON object")
    tensors = {name: spec for name, spec in header.items() if name != _METADATA}
    if not 1 <= len(tensors) <= _MAX_TENSORS:
        raise TensorsInvalid("TENSOR_COUNT", f"it holds {len(tensors)} tensors; 1 to {_MAX_TENSORS} are allowed")
    for name, spec in tensors.items():
        _check_tensor(name, spec)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise TensorsInvalid("DUPLICATE_KEY", "its header contains a key twice")
    return found


def _check_tensor(name: str, spec: Any) -> None:
    if not 1 <= len(name) <= _MAX_NAME or not name.isprintable() or unicodedata.normalize("NFC", name) != name:
        raise TensorsInvalid(
            "TENSOR_NAME", f"the tensor name {name[:_MAX_NAME]!r} is not 1 to {_MAX_NAME} printable characters in NFC"
        )
    if not isinstance(spec, dict) or spec.keys() != {"dtype", "shape", "data_offsets"}:
        raise TensorsInvalid("NOT_SAFETENSORS", f"its header does not describe tensor {name!r}")
    dtype, shape = spec["dtype"], spec["shape"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise TensorsInvalid("TENSOR_DTYPE", f"tensor {name!r} is {str(dtype)[:20]}; F32, F16 and BF16 are supported")
    whole = isinstance(shape, list) and all(type(size) is int for size in shape)
    sizes = [1, *shape] if whole and len(shape) == 1 else shape
    if not whole or len(sizes) != 2 or not 1 <= sizes[0] <= MAX_VECTORS or not 1 <= sizes[1] <= MAX_DIMENSIONS:
        raise TensorsInvalid(
            "TENSOR_SHAPE",
            f"tensor {name!r} has the shape {str(shape)[:60]}; it must be [1 to {MAX_VECTORS} vectors, 1 to "
            f"{MAX_DIMENSIONS} dimensions]",
        )


def _to_array(name: str, item: Mapping[str, Any]) -> Vectors:
    raw, shape = bytes(item["data"]), tuple(item["shape"])
    if len(raw) != math.prod(shape) * _ITEM_BYTES[item["dtype"]]:
        raise TensorsInvalid("NOT_SAFETENSORS", f"the data of tensor {name!r} does not have the size of its shape")
    match item["dtype"]:
        case "F32":
            array = np.frombuffer(raw, "<f4").astype(np.float32)
        case "F16":
            array = np.frombuffer(raw, "<f2").astype(np.float32)
        case _:
            # bfloat16 is the upper half of a float32.
            array = (np.frombuffer(raw, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    if not np.isfinite(array).all():
        raise TensorsInvalid("NOT_FINITE", f"tensor {name!r} holds NaN or infinity")
    return array.reshape(shape if len(shape) == 2 else (1, *shape))
