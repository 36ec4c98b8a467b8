"""Layouts of files with vectors: recognises the layout of a file, and exports vectors in another layout.

layout      tensors of the file
native      one for each encoder, under the encoder's name: the stored file
diffusers   one; its name becomes the token
kohya       emb_params                 Stable Diffusion 1.x, 2.x; clip_l and clip_g for SDXL
onetrainer  emp_params (sic)           Stable Diffusion 1.x; clip_l and clip_g for SDXL
comfyui     clip_l, clip_g, t5xxl      also A1111's for SDXL
a1111       a pickle, read by registry/pickles.py: emb_params, or clip_l and clip_g
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import TypeAlias

from pseudoword.names import VersionName
from pseudoword.registry.v1 import registry_pb2, resources_pb2

from rpc.errors import FailedPrecondition, InvalidArgument
from rpc.validate import Violations
from storage.tensors import Vectors, write_tensors

Version = resources_pb2.Version
Format: TypeAlias = "registry_pb2.EmbeddingFormat.ValueType"

UNSPECIFIED = registry_pb2.EMBEDDING_FORMAT_UNSPECIFIED
NATIVE = registry_pb2.EMBEDDING_FORMAT_NATIVE
DIFFUSERS = registry_pb2.EMBEDDING_FORMAT_DIFFUSERS
A1111 = registry_pb2.EMBEDDING_FORMAT_A1111
COMFYUI = registry_pb2.EMBEDDING_FORMAT_COMFYUI
KOHYA = registry_pb2.EMBEDDING_FORMAT_KOHYA
ONETRAINER = registry_pb2.EMBEDDING_FORMAT_ONETRAINER

NAMES: Mapping[int, str] = {
    NATIVE: "native",
    DIFFUSERS: "diffusers",
    A1111: "a1111",
    COMFYUI: "comfyui",
    KOHYA: "kohya",
    ONETRAINER: "onetrainer",
}

FIRST_ENCODER = "text_encoder"
_ENCODER = re.compile(r"text_encoder(_[23])?")
_ONE_TENSOR = {KOHYA: "emb_params", ONETRAINER: "emp_params"}
# A file's tensors, in the order of the pipeline's encoders: SD 1.x; SDXL; SD3; FLUX; the second encoder of SDXL alone.
_COMFYUI: Sequence[tuple[str, ...]] = (
    ("clip_l",),
    ("clip_l", "clip_g"),
    ("clip_l", "clip_g", "t5xxl"),
    ("clip_l", "t5xxl"),
    ("clip_g",),
)
_COMFYUI_DIMENSIONS = {"clip_l": 768, "clip_g": 1280, "t5xxl": 4096}
# ModelSpec's names of architectures, and their training resolutions.
_ARCHITECTURES = {
    "stable-diffusion-1": ("stable-diffusion-v1", "512x512"),
    "stable-diffusion-2": ("stable-diffusion-v2-512", "512x512"),
    "stable-diffusion-xl": ("stable-diffusion-xl-v1-base", "1024x1024"),
}


@dataclass(frozen=True, kw_only=True)
class File:
    """An exported file."""

    data: bytes
    format: Format
    filename: str


def check_format(found: Violations, layout: Format) -> None:
    """Add a violation for a number that is not a layout."""
    if layout not in registry_pb2.EmbeddingFormat.values():
        found.add("format", f"{layout} is not an EmbeddingFormat")


def is_a1111(tensors: Mapping[str, Vectors]) -> bool:
    """Whether a pickle's tensors have the names of A1111's files."""
    return set(tensors) == {"emb_params"} or any(set(order) == set(tensors) for order in _COMFYUI)


def recognise(tensors: Mapping[str, Vectors], layout: Format) -> tuple[Format, dict[str, Vectors]]:
    """The layout of a file with these tensors, and the tensors under their encoders' names.

    If `layout` is unspecified, it is recognised by the tensors' names. Raises InvalidArgument (LAYOUT_UNKNOWN,
    LAYOUT_MISMATCH).
    """
    names = set(tensors)
    if layout == UNSPECIFIED:
        layout = _layout_of(names)
    if layout == NATIVE and all(_ENCODER.fullmatch(name) for name in names):
        return layout, dict(tensors)
    if layout == A1111 and len(names) == 1:
        return layout, {FIRST_ENCODER: tensors[names.pop()]}
    if layout == COMFYUI or (layout in (A1111, *_ONE_TENSOR) and len(names) > 1):
        order = next((order for order in _COMFYUI if set(order) == names), None)
        if order is not None:
            return layout, {_encoder(index): tensors[name] for index, name in enumerate(order)}
    if layout == DIFFUSERS and len(names) == 1:
        return layout, {FIRST_ENCODER: tensors[names.pop()]}
    if layout in _ONE_TENSOR and names == {_ONE_TENSOR[layout]}:
        return layout, {FIRST_ENCODER: tensors[_ONE_TENSOR[layout]]}
    raise InvalidArgument(
        f"the file's tensors ({_listed(names)}) do not have the layout {NAMES[layout]}: give the right format, or none",
        reason="LAYOUT_MISMATCH",
        metadata={"layout": NAMES[layout], "tensors": _listed(names)},
        violations=[("data", f"its tensors are {_listed(names)}")],
    )


def _layout_of(names: set[str]) -> Format:
    for layout, name in _ONE_TENSOR.items():
        if names == {name}:
            return layout
    if any(set(order) == names for order in _COMFYUI):
        return COMFYUI
    if all(_ENCODER.fullmatch(name) for name in names):
        return NATIVE
    if len(names) == 1:
        return DIFFUSERS
    raise InvalidArgument(
        f"the tensors {_listed(names)} do not have a known layout: rename them, or give the format",
        reason="LAYOUT_UNKNOWN",
        metadata={"tensors": _listed(names)},
        violations=[("data", f"its tensors are {_listed(names)}")],
    )


def fill_encoders(
    found: Violations, field: str, model: resources_pb2.BaseModel, tensors: Mapping[str, Vectors]
) -> None:
    """Complete `model` from the tensors: the number of vectors of each encoder, and all encoders if the caller named
    none.

    Adds violations for encoders that do not match the tensors, and for tensors that do not belong to an encoder.
    """
    wrong = sorted(name for name in tensors if not _ENCODER.fullmatch(name))
    if wrong:
        found.add(
            f"{field}.encoders",
            f"the tensors {_listed(wrong)} do not have names of text encoders; a name must match {_ENCODER.pattern}",
        )
        return
    if not model.encoders:
        for name, vectors in sorted(tensors.items()):
            model.encoders.add(name=name, dimensions=vectors.shape[1], vectors=len(vectors))
        return
    named = [encoder.name for encoder in model.encoders]
    if sorted(named) != sorted(tensors):
        found.add(f"{field}.encoders", f"name {_listed(named)}, and the file has tensors for {_listed(tensors)}")
        return
    for index, encoder in enumerate(model.encoders):
        count, dimensions = tensors[encoder.name].shape
        if encoder.dimensions != dimensions:
            text = f"is {encoder.dimensions}, and the file's tensor has {dimensions} dimensions"
            found.add(f"{field}.encoders[{index}].dimensions", text)
        if encoder.vectors not in (0, count):
            found.add(
                f"{field}.encoders[{index}].vectors", f"is {encoder.vectors}, and the file's tensor has {count} vectors"
            )
        encoder.vectors = count


def export(stored: bytes, tensors: Mapping[str, Vectors], version: Version, layout: Format) -> File:
    """A version's vectors in a layout; `stored` is its native file.

    Raises FailedPrecondition (LAYOUT_UNFIT) when the layout cannot hold them, and InvalidArgument (LAYOUT_IMPORT_ONLY)
    for A1111's.
    """
    layout = layout or DIFFUSERS
    name = VersionName.parse(version.name)
    filename = f"{name.concept}-{name.version}.safetensors"
    if layout == NATIVE:
        return File(data=stored, format=layout, filename=filename)
    if layout == A1111:
        why = "A1111's .pt is a pickle and is never written; use kohya or comfyui, which A1111 also reads"
        raise InvalidArgument(
            f"format: {why}", reason="LAYOUT_IMPORT_ONLY", metadata={"layout": "a1111"}, violations=[("format", why)]
        )
    renamed = {_exported_name(layout, encoder, name, tensors): vectors for encoder, vectors in tensors.items()}
    return File(data=write_tensors(renamed, _metadata(renamed, version)), format=layout, filename=filename)


def _exported_name(layout: Format, encoder: str, name: VersionName, tensors: Mapping[str, Vectors]) -> str:
    if layout == COMFYUI or (layout in _ONE_TENSOR and len(tensors) > 1):
        dimensions = tensors[encoder].shape[1]
        found = [key for key, known in _COMFYUI_DIMENSIONS.items() if known == dimensions]
        if found:
            return found[0]
        why = f"its encoder {encoder} has {dimensions} dimensions, and the layout holds 768, 1280 or 4096"
    elif len(tensors) == 1:
        return f"<{name.concept}>" if layout == DIFFUSERS else _ONE_TENSOR[layout]
    else:
        why = f"it has {len(tensors)} encoders, and the layout holds one"
    raise FailedPrecondition(
        f"{name} cannot be written in the layout {NAMES[layout]}: {why}",
        reason="LAYOUT_UNFIT",
        metadata={"version": str(name), "layout": NAMES[layout]},
    )


def _metadata(tensors: Mapping[str, Vectors], version: Version) -> dict[str, str]:
    """The file's metadata: ModelSpec 1.0.1, as far as it is known, and the version."""
    name = VersionName.parse(version.name)
    architecture, resolution = _ARCHITECTURES.get(version.base_model.family, (version.base_model.family, ""))
    body = b"".join(tensors[key].astype("<f4").tobytes() for key in sorted(tensors))
    found = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture or 'unknown'}/textual-inversion",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": f"{name.concept} {name.version}",
        "modelspec.description": version.description,
        "modelspec.date": version.create_time.ToDatetime(tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "modelspec.resolution": resolution,
        "modelspec.trigger_phrase": f"<{name.concept}>",
        "modelspec.hash_sha256": f"0x{hashlib.sha256(body).hexdigest()}",
        "pseudoword.version": version.name,
        "pseudoword.tensors_digest": version.tensors_digest,
    }
    return {key: value for key, value in found.items() if value}


def _encoder(index: int) -> str:
    return FIRST_ENCODER if index == 0 else f"{FIRST_ENCODER}_{index + 1}"


def _listed(names: "Sequence[str] | set[str] | Mapping[str, Vectors]") -> str:
    return ", ".join(sorted(names))[:300]
