"""Describes a checkpoint by its configurations and its vocabulary, before any other weight is read."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from diffusion.errors import CheckpointInvalid

BUNDLED = Path(__file__).parents[1] / "miniature" / "model"
_FAMILIES = {768: "stable-diffusion-1", 1024: "stable-diffusion-2"}
_FAMILY_KEY = "_pseudoword_family"  # in model_index.json, for checkpoints whose width does not identify the family


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """One text encoder: width of its embeddings, positions of a prompt (start and end included), layers, and the sha256
    (hex) of its vocabulary's rows cast to little-endian fp16, so that fp32 and fp16 files of a model have the same."""

    name: str
    dims: int
    length: int
    layers: int
    vocabulary_digest: str


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Description of a checkpoint. `_px`: sizes in pixels; a latent cell is `vae_scale` pixels wide; `digest` is the
    sha256 (hex) over the names, shapes and fp32 values of all weights, empty when they were not read."""

    family: str
    checkpoint: str
    encoders: Sequence[EncoderSpec]
    sample_size_px: int
    size_multiple_px: int
    vae_scale: int
    latent_channels: int
    prediction_type: str
    digest: str

    @property
    def sample_shape_px(self) -> tuple[int, int]:
        """(height, width) of the pictures that the model was trained on."""
        return self.sample_size_px, self.sample_size_px


@dataclass(frozen=True, kw_only=True)
class Configs:
    """The configurations of a checkpoint's parts, as in their files; `index` is model_index.json."""

    index: Mapping[str, Any]
    tokenizer_length: int
    text_encoder: Mapping[str, Any]
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]


def place_of(source: str | None) -> str:
    """The folder or hub id of `source`; None: the bundled miniature. Raises CheckpointInvalid for a missing folder."""
    place = str(BUNDLED) if source is None else source
    if place.startswith(("/", ".", "~")):
        # A path. If it did not exist, the library would take it for a hub id.
        place = str(Path(place).expanduser())
        if not Path(place).is_dir():
            raise CheckpointInvalid(f"there is no folder {place}", source=place)
    return place


def not_a_checkpoint(place: str, error: Exception) -> CheckpointInvalid:
    """The error for a failure to read `place`."""
    return CheckpointInvalid(
        f"{place} is no Stable Diffusion checkpoint in diffusers' layout with safetensors: {error}", source=place
    )


def read_index(place: str, revision: str | None) -> dict[str, Any]:
    """model_index.json of a folder or a hub id."""
    file = Path(place) / "model_index.json"
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
        return found
    return dict(StableDiffusionPipeline.load_config(place, revision=revision))


def describe(place: str, configs: Configs, vocabulary: torch.Tensor, *, digest: str) -> ModelSpec:
    """The description of the checkpoint at `place`; `vocabulary` is the text encoder's own rows [entries, dims]. Raises
    CheckpointInvalid for an unsupported kind of model."""
    _refuse_other_kinds(configs, place)
    dims = vocabulary.shape[1]
    encoder = EncoderSpec(
        name="text_encoder",
        dims=dims,
        length=min(configs.tokenizer_length, configs.text_encoder["max_position_embeddings"]),
        layers=configs.text_encoder["num_hidden_layers"],
        vocabulary_digest=hashlib.sha256(
            vocabulary.cpu().to(torch.float16).numpy().astype("<f2").tobytes()
        ).hexdigest(),
    )
    sample = configs.unet["sample_size"]
    cells = sample if isinstance(sample, int) else sample[0]
    vae_scale = 2 ** (len(configs.vae["block_out_channels"]) - 1)
    folder = Path(place)
    return ModelSpec(
        family=str(configs.index.get(_FAMILY_KEY) or _FAMILIES.get(dims) or f"clip-{dims}"),
        checkpoint="miniature" if folder == BUNDLED else folder.resolve().name if folder.is_dir() else place,
        encoders=(encoder,),
        sample_size_px=cells * vae_scale,
        # diffusers' own pipeline requires multiples of 8 for any VAE.
        size_multiple_px=max(8, vae_scale),
        vae_scale=vae_scale,
        latent_channels=configs.vae.get("latent_channels", 4),
        prediction_type=_prediction_type(configs),
        digest=digest,
    )


def _prediction_type(configs: Configs) -> str:
    return str(configs.scheduler.get("prediction_type", "epsilon"))


def _refuse_other_kinds(configs: Configs, place: str) -> None:
    unet, why = configs.unet, None
    channels = unet.get("in_channels", 4)
    if channels != configs.vae.get("latent_channels", 4):
        why = f"its UNet takes {channels} channels, so it is a checkpoint for inpainting or upscaling"
    elif unet.get("time_cond_proj_dim") is not None:
        why = "its UNet takes the guidance as an input, so it is a distilled checkpoint"
    elif unet.get("class_embed_type") is not None or unet.get("addition_embed_type") is not None:
        why = "its UNet takes further inputs besides a prompt and a timestep"
    elif _prediction_type(configs) not in ("epsilon", "v_prediction"):
        why = f"its prediction type is {_prediction_type(configs)!r}, not epsilon or v_prediction"
    if why is not None:
        raise CheckpointInvalid(f"{place} is not supported: {why}", source=place)
