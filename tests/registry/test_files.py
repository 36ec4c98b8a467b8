"""Import and export of files of other programs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1 import resources_pb2 as res
from safetensors import safe_open
from safetensors.numpy import load, save

from registry import files
from storage.tensors import is_pickle, read_tensors, tensors_digest, write_tensors
from tests.registry.requests import REX, publish, refused

LAYOUTS = {
    "DIFFUSERS": {"<toy>": (2, 8)},
    "KOHYA": {"emb_params": (2, 768)},
    "ONETRAINER": {"emp_params": (1, 768)},
    "COMFYUI": {"clip_l": (2, 768), "clip_g": (2, 1280)},
    "NATIVE": {"text_encoder": (2, 8), "text_encoder_2": (2, 16)},
}
ENCODERS = {
    "DIFFUSERS": ["text_encoder"],
    "KOHYA": ["text_encoder"],
    "ONETRAINER": ["text_encoder"],
    "COMFYUI": ["text_encoder", "text_encoder_2"],
    "NATIVE": ["text_encoder", "text_encoder_2"],
}


def _tensors(layout: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in LAYOUTS[layout].items()}


def _importing(data: bytes, **fields: Any) -> rpc.ImportVersionRequest:
    return rpc.ImportVersionRequest(parent=REX, data=data, create_concept=True, **fields)


async def _export(stub: Any, name: str, layout: str) -> Any:
    request = rpc.GetEmbeddingRequest(name=name, format=rpc.EmbeddingFormat.Value(f"EMBEDDING_FORMAT_{layout}"))
    return await stub.GetEmbedding(request)


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_imported_file_is_exported_unchanged_in_its_layout(stub: Any, layout: str) -> None:
    tensors = _tensors(layout)
    made = await stub.ImportVersion(_importing(save(tensors), description="a toy", labels={"from": "afar"}))
    assert made.provenance.origin == res.Provenance.ORIGIN_IMPORTED
    assert made.provenance.imported_format == layout.lower()
    assert (made.description, dict(made.labels)) == ("a toy", {"from": "afar"})
    # Only the shapes in the file say for which model it was made.
    assert made.base_model.family == ""
    assert [encoder.name for encoder in made.base_model.encoders] == ENCODERS[layout]
    shapes = [(encoder.vectors, encoder.dimensions) for encoder in made.base_model.encoders]
    assert shapes == list(LAYOUTS[layout].values())
    assert not any(encoder.vocabulary_digest for encoder in made.base_model.encoders)

    answer = await _export(stub, made.name, layout)
    out = load(answer.data)
    # In the layout of diffusers the word is the key.
    expected = {"<rex>": tensors["<toy>"]} if layout == "DIFFUSERS" else tensors
    assert out.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(out[name], values)
    assert (await _export(stub, made.name, layout)).data == answer.data

    # An explicit layout gives the same result.
    explicit = rpc.EmbeddingFormat.Value(f"EMBEDDING_FORMAT_{layout}")
    again = await stub.ImportVersion(_importing(save(tensors), format=explicit))
    assert (again.number, again.tensors_digest) == (2, made.tensors_digest)


@given(
    concept=st.from_regex(r"[a-z][a-z0-9-]{0,62}", fullmatch=True),
    description=st.text(max_size=2_000),
    family=st.sampled_from(["", "stable-diffusion-1", "stable-diffusion-xl", "miniature"]),
    vectors=st.integers(1, 4),
    layout=st.sampled_from([files.NATIVE, files.DIFFUSERS, files.KOHYA, files.ONETRAINER, files.COMFYUI]),
)
def test_every_export_can_be_imported(concept: str, description: str, family: str, vectors: int, layout: Any) -> None:
    """For any length of the header, which depends on names and descriptions."""
    tensors = {"text_encoder": np.arange(vectors * 768, dtype=np.float32).reshape(vectors, 768)}
    described = res.Version(
        name=f"tenants/default/concepts/{concept}/versions/1",
        base_model=res.BaseModel(family=family),
        description=description,
        tensors_digest=tensors_digest(tensors),
    )
    data = files.export(write_tensors(tensors), tensors, described, layout).data
    assert not is_pickle(data)
    _, found = files.recognise(read_tensors(data), files.UNSPECIFIED)
    assert tensors_digest(found) == tensors_digest(tensors)


async def test_default_export_has_the_layout_of_diffusers(stub: Any) -> None:
    published = (await publish(stub))[0]
    answer = await stub.GetEmbedding(rpc.GetEmbeddingRequest(name=published.name))
    assert (answer.format, answer.filename) == (rpc.EMBEDDING_FORMAT_DIFFUSERS, "rex-1.safetensors")
    assert answer.version == published
    assert list(read_tensors(answer.data)) == ["<rex>"]
    native = await _export(stub, published.name, "NATIVE")
    assert tensors_digest(read_tensors(native.data)) == published.tensors_digest


async def test_export_has_metadata_of_model_and_version(stub: Any, tmp_path: Path) -> None:
    published = (await publish(stub))[0]
    path = tmp_path / "rex.safetensors"
    path.write_bytes((await _export(stub, published.name, "DIFFUSERS")).data)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.architecture"] == "miniature/textual-inversion"
    assert metadata["modelspec.trigger_phrase"] == "<rex>"
    assert metadata["pseudoword.version"] == published.name
    assert metadata["pseudoword.tensors_digest"] == published.tensors_digest


async def test_export_into_a_layout_of_other_encoders_is_refused(stub: Any) -> None:
    one = (await publish(stub))[0]
    with refused("FAILED_PRECONDITION", "LAYOUT_UNFIT", layout="comfyui"):
        await _export(stub, one.name, "COMFYUI")
    two = await stub.ImportVersion(_importing(save(_tensors("COMFYUI"))))
    with refused("FAILED_PRECONDITION", "LAYOUT_UNFIT", layout="diffusers"):
        await _export(stub, two.name, "DIFFUSERS")


async def test_pickles_are_refused_by_default(stub: Any) -> None:
    for data in (b"PK\x03\x04" + bytes(100), b"\x80\x02}q\x00."):
        with refused("FAILED_PRECONDITION", "PICKLES_OFF"):
            await stub.ImportVersion(_importing(data))
    with refused("FAILED_PRECONDITION", "PICKLES_OFF"):
        await stub.ImportVersion(_importing(save(_tensors("KOHYA")), format=rpc.EMBEDDING_FORMAT_A1111))
    published = (await publish(stub))[0]
    with refused("INVALID_ARGUMENT", "LAYOUT_IMPORT_ONLY", layout="a1111"):
        await _export(stub, published.name, "A1111")


async def test_files_of_unknown_or_mismatched_layout_are_rejected(stub: Any) -> None:
    with refused("INVALID_ARGUMENT", "NOT_SAFETENSORS") as refusal:
        await stub.ImportVersion(_importing(b"nonsense" * 10))
    assert refusal.fields == ["data"]
    two = save({"a": np.zeros((1, 8), np.float32), "b": np.zeros((1, 8), np.float32)})
    with refused("INVALID_ARGUMENT", "LAYOUT_UNKNOWN", tensors="a, b"):
        await stub.ImportVersion(_importing(two))
    with refused("INVALID_ARGUMENT", "LAYOUT_MISMATCH", layout="kohya"):
        await stub.ImportVersion(_importing(save(_tensors("DIFFUSERS")), format=rpc.EMBEDDING_FORMAT_KOHYA))
    known = res.BaseModel(encoders=[res.EncoderSpec(name="text_encoder", dimensions=9)])
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT") as refusal:
        await stub.ImportVersion(_importing(save(_tensors("DIFFUSERS")), base_model=known))
    assert refusal.fields == ["base_model.encoders[0].dimensions"]
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT") as refusal:
        await stub.ImportVersion(_importing(save(_tensors("DIFFUSERS")), format=77))
    assert refusal.fields == ["format"]


async def test_import_keeps_the_given_base_model(stub: Any) -> None:
    known = res.BaseModel(
        family="miniature", encoders=[res.EncoderSpec(name="text_encoder", dimensions=8, vocabulary_digest="cd" * 32)]
    )
    made = await stub.ImportVersion(_importing(save(_tensors("DIFFUSERS")), base_model=known))
    assert (made.base_model.family, made.base_model.encoders[0].vectors) == ("miniature", 2)
    assert made.base_model.encoders[0].vocabulary_digest == "cd" * 32


def test_diffusers_loads_the_export(tmp_path: Path) -> None:
    # Imported here: the import takes long, and the registry never needs it.
    import torch
    from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin, load_textual_inversion_state_dicts

    version = res.Version(name=f"{REX}/versions/1", base_model=res.BaseModel(family="stable-diffusion-1"))
    values = np.full((2, 8), 0.25, np.float32)
    path = tmp_path / "rex.safetensors"
    path.write_bytes(files.export(b"", {"text_encoder": values}, version, files.UNSPECIFIED).data)
    state_dicts = load_textual_inversion_state_dicts([str(path)], use_safetensors=True)
    tokens, embeddings = TextualInversionLoaderMixin._retrieve_tokens_and_embeddings([None], state_dicts, _Tokenizer())
    assert tokens == ["<rex>"]
    assert torch.equal(embeddings[0], torch.from_numpy(values))


class _Tokenizer:
    """The part of a tokenizer that diffusers uses to look for existing tokens."""

    def get_vocab(self) -> dict[str, int]:
        return {}


def test_every_embedding_format_has_a_name() -> None:
    assert set(files.NAMES) | {files.UNSPECIFIED} == set(rpc.EmbeddingFormat.values())
