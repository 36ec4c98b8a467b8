"""Files of vectors: valid and invalid files, and digests that never change."""

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load, save

from storage.errors import TensorsInvalid
from storage.tensors import MAX_FILE_BYTES, MAX_HEADER_BYTES, is_pickle, read_tensors, tensors_digest, write_tensors

ONE = {"text_encoder": np.arange(6, dtype=np.float32).reshape(2, 3)}


def _file(header: Any, body: bytes = b"", *, raw: bool = False) -> bytes:
    text = header if raw else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _spec(shape: Any, dtype: str = "F32", size: int | None = None) -> dict[str, Any]:
    size = int(np.prod(shape)) * 4 if size is None else size
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "NOT_SAFETENSORS"),
    "cut in the header": (write_tensors(ONE)[:20], "NOT_SAFETENSORS"),
    "cut in the data": (write_tensors(ONE)[:-1], "NOT_SAFETENSORS"),
    "too much data": (write_tensors(ONE) + b"\0", "NOT_SAFETENSORS"),
    "length of 2**63": (struct.pack("<Q", 2**63) + b"{}", "NOT_SAFETENSORS"),
    "pickle": (b"\x80\x04\x95", "NOT_SAFETENSORS"),
    "zip": (b"PK\x03\x04" + bytes(40), "NOT_SAFETENSORS"),
    "not JSON": (_file(b"{nonsense", raw=True), "NOT_SAFETENSORS"),
    "not UTF-8": (_file(b'{"\xff": 1}', raw=True), "NOT_SAFETENSORS"),
    "deep": (_file(b"[" * 60_000, raw=True), "NOT_SAFETENSORS"),
    "a list": (_file([]), "NOT_SAFETENSORS"),
    "file too large": (bytes(8 + MAX_HEADER_BYTES + MAX_FILE_BYTES + 1), "FILE_TOO_LARGE"),
    "tensors too large": (_file({"a": 1}, bytes(MAX_FILE_BYTES + 1)), "FILE_TOO_LARGE"),
    "header too large": (_file({"__metadata__": {"a": "x" * MAX_HEADER_BYTES}}), "HEADER_TOO_LARGE"),
    "too many keys": (_file({"__metadata__": {str(n): "" for n in range(300_000)}}), "HEADER_TOO_LARGE"),
    "duplicate tensor": (
        _file(
            b'{"a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1,1],'
            b'"data_offsets":[0,4]}}',
            bytes(4),
            raw=True,
        ),
        "DUPLICATE_KEY",
    ),
    "duplicate key within": (
        _file(b'{"a":{"dtype":"F32","dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}', bytes(4), raw=True),
        "DUPLICATE_KEY",
    ),
    "no tensors": (_file({}), "TENSOR_COUNT"),
    "only metadata": (_file({"__metadata__": {"a": "b"}}), "TENSOR_COUNT"),
    "nine tensors": (save({f"t{n}": np.zeros((1, 1), np.float32) for n in range(9)}), "TENSOR_COUNT"),
    "empty name": (save({"": np.zeros((1, 1), np.float32)}), "TENSOR_NAME"),
    "long name": (save({"x" * 101: np.zeros((1, 1), np.float32)}), "TENSOR_NAME"),
    "control character": (save({"a\x07": np.zeros((1, 1), np.float32)}), "TENSOR_NAME"),
    "not NFC": (save({"e\u0301": np.zeros((1, 1), np.float32)}), "TENSOR_NAME"),
    "unknown field": (_file({"a": _spec([1, 1]) | {"more": 1}}, bytes(4)), "NOT_SAFETENSORS"),
    "no shape": (_file({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)), "NOT_SAFETENSORS"),
    "float64": (save({"a": np.zeros((1, 1))}), "TENSOR_DTYPE"),
    "int32": (save({"a": np.zeros((1, 1), np.int32)}), "TENSOR_DTYPE"),
    "no axes": (save({"a": np.zeros((), np.float32)}), "TENSOR_SHAPE"),
    "three axes": (save({"a": np.zeros((1, 1, 1), np.float32)}), "TENSOR_SHAPE"),
    "76 vectors": (save({"a": np.zeros((76, 1), np.float32)}), "TENSOR_SHAPE"),
    "no vectors": (_file({"a": _spec([0, 10**9], size=0)}), "TENSOR_SHAPE"),
    "no dimensions": (_file({"a": _spec([1, 0], size=0)}), "TENSOR_SHAPE"),
    "too many dimensions": (save({"a": np.zeros((1, 16_385), np.float32)}), "TENSOR_SHAPE"),
    "negative": (_file({"a": _spec([-1, -1], size=4)}, bytes(4)), "TENSOR_SHAPE"),
    "true as a size": (_file({"a": _spec([True, 1], size=4)}, bytes(4)), "TENSOR_SHAPE"),
    "shape and data differ": (_file({"a": _spec([1, 2], size=4)}, bytes(4)), "NOT_SAFETENSORS"),
    "hole": (_file({"a": {"dtype": "F32", "shape": [1, 1], "data_offsets": [4, 8]}}, bytes(8)), "NOT_SAFETENSORS"),
    "NaN": (save({"a": np.array([[np.nan]], np.float32)}), "NOT_FINITE"),
    "infinity": (save({"a": np.array([[-np.inf]], np.float32)}), "NOT_FINITE"),
    "infinity in half": (save({"a": np.array([[np.inf]], np.float16)}), "NOT_FINITE"),
    "NaN in bfloat16": (_file({"a": _spec([1, 1], "BF16", 2)}, b"\xff\x7f"), "NOT_FINITE"),
}


@pytest.mark.parametrize("case", BAD)
def test_invalid_files_are_rejected_with_their_reason(case: str) -> None:
    data, reason = BAD[case]
    with pytest.raises(TensorsInvalid) as refused:
        read_tensors(data)
    assert refused.value.reason == reason


def test_half_precision_is_read_as_float32() -> None:
    values = np.array([[1.5, -0.25, 3.0]], np.float32)
    half = read_tensors(save({"a": values.astype(np.float16)}))["a"]
    upper = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    brain = read_tensors(_file({"a": _spec([1, 3], "BF16", 6)}, upper))["a"]
    for found in (half, brain):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, values)


def test_digest_is_stable_and_depends_on_the_tensors_only() -> None:
    # A constant: existing logs hold digests.
    assert tensors_digest(ONE) == "cd609521778e7684d1b15ec51cf4438d1d17229655f3c1fa892923e008b81019"
    other = write_tensors(ONE, {"b": "2", "a": "1"})
    assert other != write_tensors(ONE)
    assert tensors_digest(read_tensors(other)) == tensors_digest(ONE)
    assert tensors_digest({"text_encoder": ONE["text_encoder"].reshape(3, 2)}) != tensors_digest(ONE)
    assert tensors_digest({"text_encoder_2": ONE["text_encoder"]}) != tensors_digest(ONE)


_names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)
_values = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 8)), elements=st.floats(-1e3, 1e3, width=32)
)


@settings(deadline=None)
@given(
    tensors=st.dictionaries(_names.filter(lambda name: name != "__metadata__"), _values, min_size=1, max_size=3),
    metadata=st.dictionaries(_names, st.text(max_size=20), max_size=4),
)
def test_written_files_are_read_by_this_module_and_by_safetensors(
    tensors: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
    data = write_tensors(tensors, metadata)
    assert data == write_tensors(dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    ours, theirs = read_tensors(data), load(data)
    assert ours.keys() == theirs.keys() == tensors.keys()
    for name, values in tensors.items():
        np.testing.assert_array_equal(ours[name], values)
        np.testing.assert_array_equal(theirs[name], values)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_rejected(noise: bytes) -> None:
    with pytest.raises(TensorsInvalid):
        read_tensors(noise)


@pytest.mark.parametrize("high", range(0x02, 0x06))
def test_header_length_that_looks_like_a_pickle_is_read(high: int) -> None:
    """Lengths of 640, 896, 1152 and 1408 bytes begin with the bytes of a pickle's protocol."""
    wanted = high << 8 | 0x80
    padding = wanted - len(write_tensors(ONE, {"a": ""})[8 : -ONE["text_encoder"].nbytes])
    data = write_tensors(ONE, {"a": "x" * padding})
    assert struct.unpack("<Q", data[:8])[0] == wanted
    assert not is_pickle(data)
    assert read_tensors(data)["text_encoder"].tolist() == ONE["text_encoder"].tolist()


def test_a_vector_without_a_count_is_one_vector() -> None:
    data = save({"<cat-toy>": np.arange(4, dtype=np.float32)})
    assert read_tensors(data)["<cat-toy>"].shape == (1, 4)


def test_metadata_may_be_larger_than_the_tensors() -> None:
    """A thumbnail, or the workflow of the program that wrote the file."""
    data = write_tensors(ONE, {"thumbnail": "x" * 3 * 2**20, "workflow": json.dumps({str(n): n for n in range(5_000)})})
    assert read_tensors(data)["text_encoder"].shape == (2, 3)
