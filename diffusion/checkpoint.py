"""A Stable Diffusion 1.x or 2.x checkpoint in diffusers' layout, loaded and frozen."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from diffusion.denoiser import Denoiser, LocalDenoiser
from diffusion.errors import CheckpointInvalid
from diffusion.graphs import Captured
from diffusion.words import WordEmbedding

BUNDLED = Path(__file__).parents[1] / "miniature" / "model"
_FAMILIES = {768: "stable-diffusion-1", 1024: "stable-diffusion-2"}
_FAMILY_KEY = "_pseudoword_family"  # in model_index.json, for checkpoints whose width tells nothing


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """One text encoder: width of its embeddings, positions of a prompt (start and end included), layers, and the sha256
    (hex) of its vocabulary's rows cast to little-endian fp16, by which fp32 and fp16 files of one model agree."""

    name: str
    dims: int
    length: int
    layers: int
    vocabulary_digest: str


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What a checkpoint is. Sizes in pixels; `vae_scale` pixels make one latent cell; `digest` is a sha256 (hex) over
    the names, shapes and fp32 values of all weights."""

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


class BaseModel:
    """The frozen parts of one checkpoint. Nothing in it ever changes; words come in through `embedding`.

    `unet` is None where another machine denoises.
    """

    def __init__(
        self,
        pipeline: Any,
        spec: ModelSpec,
        *,
        device: torch.device,
        dtype: torch.dtype,
        denoiser: Denoiser | None = None,
        row_buckets: Sequence[int] = (),
        graphs: bool = False,
    ) -> None:
        self.spec = spec
        self.device = device
        self.dtype = dtype
        self.tokenizer: Any = pipeline.tokenizer
        self.text_encoder: Any = _frozen(pipeline.text_encoder, device, dtype)
        self.unet: Any = None if denoiser is not None else _frozen(pipeline.unet, device, dtype)
        record = Captured(device) if graphs else None
        self.denoiser: Denoiser = LocalDenoiser(self.unet, row_buckets, record) if denoiser is None else denoiser
        self.vae: Any = _frozen(pipeline.vae, device, dtype)
        self.scheduler_config: dict[str, Any] = dict(pipeline.scheduler.config)
        self.embedding = WordEmbedding(self.text_encoder.get_input_embeddings())
        self.text_encoder.set_input_embeddings(self.embedding)

    @classmethod
    def load(
        cls,
        source: str | None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        denoiser: Callable[[ModelSpec], Denoiser] | None = None,
        row_buckets: Sequence[int] = (),
        graphs: bool = False,
    ) -> Self:
        """Load a folder or a hub id; None: the bundled miniature.

        `denoiser` makes one for this checkpoint; then the UNet is read for the digest only, and not kept.
        `row_buckets`: see LocalDenoiser; `graphs`, on a CUDA device: their calls are captured as CUDA graphs.
        Only safetensors are read. Raises CheckpointInvalid when there is no such checkpoint, or it is of another kind.
        """
        place = str(BUNDLED) if source is None else source
        if place.startswith(("/", ".", "~")):
            # A path, which the library would take for a strange hub id where it does not exist.
            place = str(Path(place).expanduser())
            if not Path(place).is_dir():
                raise CheckpointInvalid(f"there is no folder {place}", source=place)
        try:
            # In fp32 first, whatever is asked for, so that the digests do not depend on it.
            pipeline = StableDiffusionPipeline.from_pretrained(
                place,
                revision=revision,
                dtype=torch.float32,
                use_safetensors=True,
                safety_checker=None,
                requires_safety_checker=False,
            )
        except Exception as error:  # whatever the two libraries raise for a bad folder, id or file
            raise CheckpointInvalid(
                f"{place} is no Stable Diffusion checkpoint in diffusers' layout with safetensors: {error}",
                source=place,
            ) from error
        _refuse_other_kinds(pipeline, place)
        spec = _describe(pipeline, place, _family(place, revision, pipeline))
        other = None if denoiser is None else denoiser(spec)
        return cls(
            pipeline,
            spec,
            device=torch.device(device),
            dtype=dtype,
            denoiser=other,
            row_buckets=row_buckets,
            graphs=graphs,
        )

    @cached_property
    def latent_rgb(self) -> torch.Tensor:
        """[latent channels + 1, 3]: a cell of a latent, and 1, times this is about its colour, 0 to 1.

        Fitted by least squares to a colour chart that the model's own VAE encodes, so it holds for any checkpoint.
        """
        scale, cells = self.spec.vae_scale, 8
        levels = torch.linspace(0, 1, 4)
        chart = torch.cartesian_prod(levels, levels, levels)  # 64 colours
        side = max(cells, self.spec.sample_size_px // (8 * scale)) * scale
        pixels = chart.reshape(8, 8, 3).repeat_interleave(side, 0).repeat_interleave(side, 1).permute(2, 0, 1)[None]
        with torch.no_grad():
            latents = self.vae.encode((pixels * 2 - 1).to(self.device, self.dtype)).latent_dist.mean.float()
        middles = latents * self.vae.config.scaling_factor
        step = side // scale
        picked = middles[0, :, step // 2 :: step, step // 2 :: step].flatten(1).T.cpu()
        known = torch.cat([picked, torch.ones(len(picked), 1)], dim=1)
        fitted: torch.Tensor = torch.linalg.lstsq(known, chart).solution
        return fitted.to(self.device)


def _frozen(module: nn.Module, device: torch.device, dtype: torch.dtype) -> Any:
    if dtype != torch.float32:  # what it was loaded in
        module.to(dtype=dtype)
    return module.to(device=device).eval().requires_grad_(False)


def _refuse_other_kinds(pipeline: Any, place: str) -> None:
    unet = pipeline.unet.config
    why = None
    if unet.in_channels != pipeline.vae.config.latent_channels:
        why = f"its UNet takes {unet.in_channels} channels: a checkpoint for inpainting or upscaling"
    elif unet.time_cond_proj_dim is not None:
        why = "its UNet takes the guidance as an input: a distilled checkpoint"
    elif unet.class_embed_type is not None or unet.addition_embed_type is not None:
        why = "its UNet takes more than a prompt and a timestep"
    elif pipeline.scheduler.config.get("prediction_type") not in ("epsilon", "v_prediction"):
        why = f"it predicts {pipeline.scheduler.config.get('prediction_type')!r}"
    if why is not None:
        raise CheckpointInvalid(f"{place} is not supported: {why}", source=place)


def _family(place: str, revision: str | None, pipeline: Any) -> str:
    index: dict[str, Any]
    index_file = Path(place) / "model_index.json"
    if index_file.is_file():
        index = json.loads(index_file.read_text("utf-8"))
    else:
        index = dict(StableDiffusionPipeline.load_config(place, revision=revision))
    dims = pipeline.text_encoder.config.hidden_size
    return str(index.get(_FAMILY_KEY) or _FAMILIES.get(dims) or f"clip-{dims}")


def _describe(pipeline: Any, place: str, family: str) -> ModelSpec:
    table = pipeline.text_encoder.get_input_embeddings().weight.detach()
    encoder = EncoderSpec(
        name="text_encoder",
        dims=table.shape[1],
        length=min(pipeline.tokenizer.model_max_length, pipeline.text_encoder.config.max_position_embeddings),
        layers=pipeline.text_encoder.config.num_hidden_layers,
        vocabulary_digest=hashlib.sha256(table.to(torch.float16).numpy().astype("<f2").tobytes()).hexdigest(),
    )
    sample = pipeline.unet.config.sample_size
    cells = sample if isinstance(sample, int) else sample[0]
    folder = Path(place)
    return ModelSpec(
        family=family,
        checkpoint="miniature" if folder == BUNDLED else folder.resolve().name if folder.is_dir() else place,
        encoders=(encoder,),
        sample_size_px=cells * pipeline.vae_scale_factor,
        # diffusers' own pipeline asks for multiples of 8, whatever the VAE.
        size_multiple_px=max(8, pipeline.vae_scale_factor),
        vae_scale=pipeline.vae_scale_factor,
        latent_channels=pipeline.vae.config.latent_channels,
        prediction_type=pipeline.scheduler.config.prediction_type,
        digest=_weights_digest(pipeline),
    )


def _weights_digest(pipeline: Any) -> str:
    digest = hashlib.sha256()
    for name in ("text_encoder", "unet", "vae"):
        for key, tensor in sorted(getattr(pipeline, name).state_dict().items()):
            values = np.ascontiguousarray(tensor.float().numpy().astype("<f4", copy=False))
            digest.update(f"{name}/{key}/{values.shape}\n".encode())
            digest.update(values.data if values.size else b"")
    return digest.hexdigest()
