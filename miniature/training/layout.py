"""The bundled model's architecture: untrained modules, and their checkpoint in diffusers' layout."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from miniature.paint import SIZE
from miniature.training.tokenizer import LENGTH, carried_rows

WIDTH = 128
"""Width of the text encoder, and thus of a word's vectors."""
LATENT_CHANNELS = 4
"""Latent channels of the bundled model."""


def new_vae(channels: int = LATENT_CHANNELS) -> Any:
    """An untrained AutoencoderKL. A latent cell has `channels` channels and covers 4 x 4 pixels.

    Each norm has a single group: with several groups flat colours are lost, because each group's mean is subtracted.
    """
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=1,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def new_unet(channels: int = LATENT_CHANNELS, *, fine_attention: bool = False) -> Any:
    """An untrained UNet2DConditionModel over latents of 16 x 16 cells.

    With `fine_attention` it has cross-attention at 16 x 16 too, in the down and the up blocks.
    """
    down, up = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if fine_attention else ("DownBlock2D", "UpBlock2D")
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(64, 128, 160),
        down_block_types=(down, "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", up),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def carry_unet(unet: Any, shape: Any) -> Any:
    """`shape` with the weights of `unet`, and the same output. `shape` may have additional attentions; their output
    projections are set to 0."""
    missing, unknown = shape.load_state_dict(unet.state_dict(), strict=False)
    if unknown:
        raise ValueError(f"the new UNet has no place for the parameter {unknown[0]}")
    lacking = {name.rsplit(".proj_out.", 1)[0] for name in missing if ".proj_out." in name}
    for name in lacking:
        last = shape.get_submodule(name).proj_out
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return shape


def new_text_encoder(tokenizer: Any) -> Any:
    """An untrained CLIPTextModel for the tokenizer's vocabulary."""
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    nn.init.normal_(encoder.get_input_embeddings().weight, std=0.05)
    return encoder


def carry_text_encoder(encoder: Any, old: Any, new: Any) -> Any:
    """`encoder` for the tokenizer `new`: each token's embedding is the mean of the embeddings of its text under the
    tokenizer `old`."""
    carried = new_text_encoder(new)
    kept = {key: value for key, value in encoder.state_dict().items() if "token_embedding" not in key}
    carried.load_state_dict(kept, strict=False)
    table, rows = encoder.get_input_embeddings().weight, carried.get_input_embeddings().weight
    with torch.no_grad():
        for number, sources in carried_rows(old, new).items():
            rows[number] = table[sources].mean(dim=0)
    return carried


def scheduler() -> Any:
    """A scheduler with Stable Diffusion's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def save(folder: Path, *, tokenizer: Any, text_encoder: Any, unet: Any, vae: Any) -> None:
    """Writes a checkpoint that StableDiffusionPipeline.from_pretrained loads, in fp16."""
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    index = folder / "model_index.json"
    described = json.loads(index.read_text("utf-8")) | {"_pseudoword_family": "miniature"}
    index.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", "utf-8")


def forget_origin(folder: Path) -> None:
    """Deletes from a checkpoint's configs the paths that its parts were loaded from, which diffusers stores."""
    for file in folder.glob("*/config.json"):
        settings = json.loads(file.read_text("utf-8"))
        if settings.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint's folder."""
    return CLIPTokenizer.from_pretrained(folder / "tokenizer")
