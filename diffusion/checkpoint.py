"""A Stable Diffusion 1.x or 2.x checkpoint in diffusers' layout, loaded and frozen."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from diffusion.denoiser import Denoiser, LocalDenoiser
from diffusion.graphs import Captured
from diffusion.spec import Configs, ModelSpec, describe, not_a_checkpoint, place_of, read_index
from diffusion.words import WordEmbedding


class BaseModel:
    """The frozen parts of one checkpoint. Its weights never change; words enter through `embedding`.

    `unet` is None when a remote denoiser is used.
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

        `denoiser` makes a remote denoiser for this checkpoint; the UNet is then read for the digest only, and not kept.
        `row_buckets`: see LocalDenoiser. `graphs`, on a CUDA device: calls of these sizes are captured as CUDA graphs.
        Only safetensors are read. Raises CheckpointInvalid when the checkpoint is missing or not supported.
        """
        place = place_of(source)
        try:
            # Loaded in fp32 first, for any `dtype`, so that the digests do not depend on it.
            pipeline = StableDiffusionPipeline.from_pretrained(
                place,
                revision=revision,
                dtype=torch.float32,
                use_safetensors=True,
                safety_checker=None,
                requires_safety_checker=False,
            )
        except Exception as error:  # the two libraries raise many types for a bad folder, id or file
            raise not_a_checkpoint(place, error) from error
        table = pipeline.text_encoder.get_input_embeddings().weight.detach()
        spec = describe(place, _configs(pipeline, place, revision), table, digest=_weights_digest(pipeline))
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
        """[latent channels + 1, 3]: maps a latent cell, extended by 1, to its approximate colour (RGB from 0 to 1).

        Fitted by least squares to a colour chart that the model's own VAE encodes, so it works for any checkpoint.
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


def _configs(pipeline: Any, place: str, revision: str | None) -> Configs:
    return Configs(
        index=read_index(place, revision),
        tokenizer_length=pipeline.tokenizer.model_max_length,
        text_encoder=pipeline.text_encoder.config.to_dict(),
        unet=dict(pipeline.unet.config),
        vae=dict(pipeline.vae.config),
        scheduler=dict(pipeline.scheduler.config),
    )


def _frozen(module: nn.Module, device: torch.device, dtype: torch.dtype) -> Any:
    if dtype != torch.float32:  # it was loaded in float32
        module.to(dtype=dtype)
    return module.to(device=device).eval().requires_grad_(False)


def _weights_digest(pipeline: Any) -> str:
    digest = hashlib.sha256()
    for name in ("text_encoder", "unet", "vae"):
        for key, tensor in sorted(getattr(pipeline, name).state_dict().items()):
            values = np.ascontiguousarray(tensor.float().numpy().astype("<f4", copy=False))
            digest.update(f"{name}/{key}/{values.shape}\n".encode())
            digest.update(values.data if values.size else b"")
    return digest.hexdigest()
