"""A1111's .pt files: tensors are read, and no other operation of a pickle runs."""

import io
import os
import pickle
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pseudoword.registry.v1 import registry_pb2 as rpc

from registry.unpickle import Refused, read
from storage.tensors import read_tensors
from tests.conftest import ROOT
from tests.registry.conftest import Start
from tests.registry.requests import REX, refused

torch = pytest.importorskip("torch")


def _saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _vectors(count: int, dimensions: int, dtype: Any = None) -> Any:
    values = torch.arange(count * dimensions, dtype=torch.float32).reshape(count, dimensions) / 7
    return values.to(dtype or torch.float32)


def _a1111(vectors: Any) -> bytes:
    """As AUTOMATIC1111/stable-diffusion-webui's Embedding.save writes it."""
    data = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors},
        "name": "rex",
        "step": 3000,
        "sd_checkpoint": "7460a6fa",
        "sd_checkpoint_name": "sd-v1-4",
    }
    return _saved(data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_embedding_of_each_dtype_is_read(dtype: Any) -> None:
    vectors = _vectors(3, 768, dtype)
    found = read(_a1111(vectors))
    assert list(found) == ["emb_params"]
    np.testing.assert_array_equal(found["emb_params"], vectors.float().numpy())


def test_files_of_other_programs_are_read() -> None:
    both = {"clip_l": _vectors(2, 768), "clip_g": _vectors(2, 1280)}
    found = read(_saved(both))
    assert {name: array.shape for name, array in found.items()} == {"clip_l": (2, 768), "clip_g": (2, 1280)}
    # The ParameterDict of the first textual inversion, and a parameter that requires a gradient.
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(_vectors(1, 8))})
    found = read(_saved({"string_to_token": {"*": 265}, "string_to_param": parameters}))
    np.testing.assert_array_equal(found["emb_params"], _vectors(1, 8).numpy())
    # diffusers' learned_embeds.bin: one dimension, the token as its name.
    assert read(_saved({"<rex>": _vectors(1, 8)[0]}))["<rex>"].shape == (1, 8)
    # A slice of a larger storage.
    np.testing.assert_array_equal(read(_saved({"a": _vectors(4, 8)[2:3]}))["a"], _vectors(4, 8)[2:3].numpy())


class _Call:
    """Its pickle calls `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _zip(data: bytes, **more: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in more.items():
            archive.writestr(f"archive/data/{name}", content)
    return file.getvalue()


@pytest.mark.parametrize(
    "what",
    [
        _Call(os.system, "touch pwned"),
        _Call(eval, "1"),
        _Call(getattr, "", "join"),
        _Call(subprocess.Popen, ["touch", "pwned"]),
        _Call(socket.socket),
        _Call(print, "x"),
    ],
    ids=["system", "eval", "getattr", "popen", "socket", "print"],
)
def test_pickle_cannot_call_functions(what: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match="which no embedding needs"):
        read(_zip(pickle.dumps({"string_to_param": {"*": what}}, protocol=2)))
    assert not (tmp_path / "pwned").exists()


def test_files_without_an_embedding_are_refused() -> None:
    for data in (b"PK\x03\x04nonsense", _zip(b"\x80\x02."), _saved({"a": "text"}), _saved([1]), _saved({})):
        with pytest.raises(Refused):
            read(data)
    with pytest.raises(Refused, match="view of another"):
        read(_saved({"a": _vectors(4, 8).T}))
    with pytest.raises(Refused, match="holds more"):
        read(_zip(b"", **{str(number): bytes(2**20) for number in range(3)}))
    with pytest.raises(Refused, match="outside its storage"):
        data = _saved({"a": _vectors(1, 8)})
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
        read(_zip(names["data.pkl"], **{"0": names["data/0"][:8]}))


def test_child_process_can_open_start_and_write_nothing(tmp_path: Path) -> None:
    """Confinement holds even if the unpickler has a fault."""
    code = f"""
import os, socket, subprocess, sys
from registry.unpickle import confine
confine()
tries = {{
    "socket": lambda: socket.socket(),
    "read": lambda: open("/etc/passwd"),
    "write": lambda: open({str(tmp_path / "pwned")!r}, "w"),
    "start": lambda: subprocess.run(["true"]),
    "memory": lambda: bytearray(2**31),
}}
for name, what in tries.items():
    try:
        what()
        sys.stdout.write(name + " ")
    except (OSError, MemoryError):
        pass
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr


async def test_pickle_is_imported_if_enabled(start: Start) -> None:
    stub = await (await start(import_pickles=True)).call()

    def importing(data: bytes, layout: "rpc.EmbeddingFormat.ValueType" = rpc.EMBEDDING_FORMAT_UNSPECIFIED) -> Any:
        return stub.ImportVersion(rpc.ImportVersionRequest(parent=REX, data=data, format=layout, create_concept=True))

    made = await importing(_a1111(_vectors(2, 768)))
    assert made.provenance.imported_format == "a1111"
    file = await stub.GetEmbedding(rpc.GetEmbeddingRequest(name=made.name, format=rpc.EMBEDDING_FORMAT_KOHYA))
    np.testing.assert_array_equal(read_tensors(file.data)["emb_params"], _vectors(2, 768).numpy())
    both = await importing(
        _saved({"clip_l": _vectors(1, 768), "clip_g": _vectors(1, 1280)}), rpc.EMBEDDING_FORMAT_A1111
    )
    assert [encoder.name for encoder in both.base_model.encoders] == ["text_encoder", "text_encoder_2"]
    bin_file = await importing(_saved({"<rex>": _vectors(1, 8)[0]}))
    assert bin_file.provenance.imported_format == "diffusers"
    for data, why in (
        (_zip(pickle.dumps({"*": _Call(os.system, "true")}, protocol=2)), "posix.system"),
        (b"\x80\x02}q\x00.", "not a zip archive"),
    ):
        with refused("INVALID_ARGUMENT", "PICKLE_REFUSED") as refusal:
            await importing(data)
        assert why in refusal.error.message
    with refused("INVALID_ARGUMENT", "NOT_FINITE"):
        await importing(_a1111(torch.full((1, 8), float("nan"))))
