"""`python -I -m registry.unpickle`: reads a file of torch.save from standard input, and writes its tensors as
safetensors to standard output. For a refused file: exit status 3, and one line on standard error.

Nothing that a pickle names is ever imported or called: the unpickler maps the few names that an embedding needs to
functions of this module, which make numpy arrays. As a second line of defence it runs as a process of its own, which
cannot open anything (no file, no socket), cannot start a process, and has little memory and time.
"""

import io
import os
import pickle
import resource
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.tensors import MAX_FILE_BYTES, write_tensors

REFUSED = 3
# The name of the tensor that is written for the single embedding of an A1111 file.
SINGLE = "emb_params"

_CPU_S = 5
_MEMORY_BYTES = 2**30
_MAX_PICKLE = 2**18
_MAX_MEMBERS = 64
_MAX_TENSORS = 8

Array = npt.NDArray[Any]


class Refused(Exception):
    """The file is not an embedding, or names something that an embedding does not need."""


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A torch storage class: the numpy type of its numbers, and whether they are the upper halves of fp32."""

    dtype: str
    upper_half: bool = False


class _Parameters:
    """Stands in for torch.nn's ParameterDict: `items` has its content by name."""

    def __setstate__(self, state: Any) -> None:
        found = state.get("_parameters") if isinstance(state, dict) else None
        self.items = {**(found or {}), **{key: value for key, value in state.items() if isinstance(value, np.ndarray)}}


def _ordered(*arguments: Any) -> "OrderedDict[Any, Any]":
    return OrderedDict(*arguments)


def _set(*arguments: Any) -> set[Any]:
    return set(*arguments)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Array:
    """Stands in for torch._utils._rebuild_tensor_v2; for contiguous, row-major tensors only."""
    if not isinstance(storage, np.ndarray) or not all(type(size) is int and size > 0 for size in (*shape, *strides)):
        raise Refused("a tensor has no storage or no shape")
    count, step = 1, 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:
            raise Refused("a tensor is a view of another one")
        count, step = count * size, step * size
    if type(offset) is not int or offset < 0 or offset + count > len(storage):
        raise Refused("a tensor lies outside its storage")
    return storage[offset : offset + count].reshape(tuple(shape))


def _parameter(data: Any, *_: Any) -> Array:
    if not isinstance(data, np.ndarray):
        raise Refused("a parameter is not a tensor")
    return data


_ALLOWED: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered,
    ("__builtin__", "set"): _set,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.nn.modules.container", "ParameterDict"): _Parameters,
    ("torch", "FloatStorage"): _Kind(dtype="<f4"),
    ("torch", "HalfStorage"): _Kind(dtype="<f2"),
    ("torch", "BFloat16Storage"): _Kind(dtype="<u2", upper_half=True),
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, storage: Callable[[str], bytes]) -> None:
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise Refused(f"it names {module[:60]}.{name[:60]}, which no embedding needs") from None

    def persistent_load(self, pid: Any) -> Array:
        match pid:
            case ("storage", _Kind() as kind, str(key), _, int()) if key.isalnum():
                data = self._storage(key)
                array: Array = np.frombuffer(data[: len(data) - len(data) % np.dtype(kind.dtype).itemsize], kind.dtype)
                if kind.upper_half:
                    return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
                return array.astype(np.float32)
        raise Refused("its storage is not torch's")


def read(data: bytes) -> dict[str, Array]:
    """The tensors of a file of torch.save, fp32 [vectors, dimensions], by name. Raises Refused.

    Supports the files of A1111 and of the original textual inversion (`string_to_param`; the name is SINGLE), of SDXL
    (`clip_l`, `clip_g`), and diffusers' learned_embeds.bin (the name is the token).
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise Refused(f"it is not a zip archive, the format of torch.save since torch 1.6 ({error})") from None
    if len(members) > _MAX_MEMBERS or sum(member.file_size for member in members) > MAX_FILE_BYTES:
        raise Refused("it holds more than an embedding does")
    pickles = [member for member in members if member.filename.endswith("/data.pkl")]
    if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE:
        raise Refused("it holds no data.pkl, or a large one")
    root = pickles[0].filename.removesuffix("data.pkl")

    def member(name: str) -> bytes:
        info = archive.NameToInfo.get(root + name)
        if info is None or info.compress_type != zipfile.ZIP_STORED:
            raise Refused("a part of it is missing or compressed, which torch.save never does")
        return archive.read(info)

    try:
        found = _Unpickler(io.BytesIO(member("data.pkl")), lambda key: member(f"data/{key}")).load()
    except Refused:
        raise
    except Exception as error:  # a pickle can raise any exception
        raise Refused(f"its pickle is damaged ({type(error).__name__})") from None
    return _named(found)


def _named(found: Any) -> dict[str, Array]:
    if isinstance(found, dict) and "string_to_param" in found:
        parameters = found["string_to_param"]
        values = list((parameters.items if isinstance(parameters, _Parameters) else dict(parameters)).values())
        if len(values) != 1:
            raise Refused(f"its string_to_param holds {len(values)} vectors instead of one")
        found = {SINGLE: values[0]}
    if not isinstance(found, dict) or not 1 <= len(found) <= _MAX_TENSORS:
        raise Refused("it holds no embedding")
    tensors: dict[str, Array] = {}
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray) or value.ndim not in (1, 2):
            raise Refused("it holds something other than embeddings")
        tensors[name] = np.atleast_2d(value)
    return tensors


def confine() -> None:
    """Restrict this process: it can no longer open or write a file, open a socket or start a process, and its memory
    and time are limited."""
    for kind, limit in (
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_CPU, _CPU_S),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        # No new descriptor: no file, socket or pipe can be opened. Open descriptors stay open.
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def main() -> int:
    """Read standard input, write standard output; returns the exit status."""
    data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    # Loads the codec now, because no file can be opened afterwards.
    b"names of a zip archive's members".decode("cp437")
    confine()
    try:
        answer = write_tensors(read(data))
    except Refused as refusal:
        os.write(2, str(refusal).encode(errors="replace"))
        return REFUSED
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
