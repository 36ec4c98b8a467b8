"""The loss of text encoder and UNet, which are trained together on latents and captions.

Min-SNR weighting (Hang et al. 2023, arXiv 2303.09556, equation 6) of the noise prediction's squared error, stratified
timesteps, one caption in ten is empty, for classifier-free guidance (Ho and Salimans 2022).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pseudoword.names import WordRef
from torch import nn

from diffusion.checkpoint import BaseModel
from diffusion.encoder import PromptEncoder
from diffusion.prompt import Prompt, parse
from miniature.captions import caption
from miniature.training.drawings import Drawings
from miniature.training.vectors import Vectors

_TOY, _OTHER, _STYLE = "toy", "other", "style"


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The composition of a batch, and the weights of timesteps."""

    with_words: float = 0.35
    """Share of the captions with a word for a toy, a style or several of these, where the caption does not need one."""
    empty: float = 0.1
    """Share of the captions that are empty."""
    photos: float | None = 0.65
    """Share of photos, in which patterns are visible; None: their share in the training set."""
    snr_limit: float = 5.0
    """Gamma of the min-SNR weights."""
    middle: float = 0.0
    """Share of the timesteps from the third between 300 and 633, which decides the shapes."""


class DiffusionLoss:
    """The loss of one batch, for `fitting.train`."""

    def __init__(
        self,
        model: BaseModel,
        vectors: Vectors,
        drawings: Drawings,
        latents: torch.Tensor,
        mixture: Mixture,
        batch: int,
    ) -> None:
        """`latents` [drawings, channels, cells, cells] are scaled as the UNet expects them, on any device."""
        self._model = model
        self._encoder = PromptEncoder(model)
        self._vectors = vectors
        self._drawings = drawings
        self._latents = latents
        self._mixture = mixture
        self._batch = batch
        alphas = _alphas(model).to(model.device)
        self._signal, self._noise = alphas.sqrt(), (1 - alphas).sqrt()
        snr = alphas / (1 - alphas)
        self._weights = snr.clamp(max=mixture.snr_limit) / snr
        self._by_style = None if mixture.photos is None else _by_style(drawings)

    def __call__(self, generator: torch.Generator) -> torch.Tensor:
        """The mean of the weighted squared errors of the batch's rows."""
        rows = self._rows(generator)
        latents = self._latents[rows].to(self._model.device, torch.float32)
        steps = self._timesteps(generator).to(latents.device)
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        noisy = self._signal[steps, None, None, None] * latents + self._noise[steps, None, None, None] * noise
        with autocast(self._model.device):
            hidden = self._hidden(rows.tolist(), generator)
            predicted = self._model.unet(noisy, steps, hidden).sample
        errors = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        loss: torch.Tensor = (errors * self._weights[steps]).mean()
        return loss

    def _rows(self, generator: torch.Generator) -> torch.Tensor:
        if self._by_style is None or self._mixture.photos is None:
            return torch.randint(len(self._latents), (self._batch,), generator=generator)
        photos, others = self._by_style
        photo = torch.rand(self._batch, generator=generator) < self._mixture.photos
        picks = torch.rand(self._batch, generator=generator)
        return torch.where(
            photo,
            photos[(picks * len(photos)).long()],
            others[(picks * len(others)).long()],
        )

    def _timesteps(self, generator: torch.Generator) -> torch.Tensor:
        strata = (torch.rand(1, generator=generator) + torch.arange(self._batch) / self._batch) % 1
        steps = strata * 1000
        middle = torch.rand(self._batch, generator=generator) < self._mixture.middle
        return torch.where(middle, 300 + strata * 333, steps).long()

    def _hidden(self, rows: list[int], generator: torch.Generator) -> torch.Tensor:
        """Hidden states [rows, length, width] of the rows' captions, each with its own words."""
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        prompts: list[Prompt] = []
        toys, styles = {}, {}
        for place, number in enumerate(rows):
            drawing = self._drawings.drawing(number)
            sentence = caption(drawing, rng)
            if rng.random() < self._mixture.empty:
                prompts.append(Prompt(()))
                continue
            chosen = (
                _words(sentence.other != "", sentence.form is None, rng)
                if rng.random() < self._mixture.with_words
                else []
            )
            if sentence.form is None and _STYLE not in chosen:
                chosen = [*chosen, _STYLE]
            names = {word: f"{word}-{place}" for word in chosen}
            text = sentence.with_words(**{word: f"<{name}>" for word, name in names.items()})
            prompt = parse(text)
            prompts.append(prompt)
            for ref in prompt.words:
                kind = ref.concept.split("-")[0]
                if kind == _STYLE:
                    styles[ref] = drawing.style
                else:
                    toys[ref] = drawing.toys[kind == _OTHER]
        vectors: dict[WordRef, torch.Tensor] = {}
        if toys:
            made = self._vectors.of_toys(list(toys.values()), generator)
            vectors |= {ref: vector[None] for ref, vector in zip(toys, made, strict=True)}
        if styles:
            made = self._vectors.of_styles(list(styles.values()), generator)
            vectors |= {ref: vector[None] for ref, vector in zip(styles, made, strict=True)}
        return self._encoder.encode(prompts, vectors)


def _words(pair: bool, nameless: bool, rng: np.random.Generator) -> list[str]:
    """The parts of a caption that words replace: usually the toy, sometimes the style, both, or one or both of two
    toys."""
    if pair:
        return [[_TOY], [_OTHER], [_TOY, _OTHER]][int(rng.integers(3))]
    if nameless:
        return [_TOY] if rng.random() < 0.4 else []
    chance = rng.random()
    return [_TOY] if chance < 0.75 else [_STYLE] if chance < 0.9 else [_TOY, _STYLE]


def _by_style(drawings: Drawings) -> tuple[torch.Tensor, torch.Tensor]:
    photo = torch.tensor([drawings.drawing(number).style.name == "photo" for number in range(drawings.count)])
    return photo.nonzero()[:, 0], (~photo).nonzero()[:, 0]


def _alphas(model: BaseModel) -> torch.Tensor:
    config = model.scheduler_config
    betas = torch.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, config["num_train_timesteps"]) ** 2
    return (1 - betas).cumprod(0)


def autocast(device: torch.device) -> Any:
    """Autocast to bf16, disabled on a CPU without native bf16, where it would be many times slower."""
    fast = device.type == "cuda" or _cpu_has_bf16()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)


def _cpu_has_bf16() -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and "avx512_bf16" in info.read_text("utf-8")


def trainable(model: BaseModel, vectors: Vectors) -> nn.ModuleDict:
    """The trained modules, with gradients enabled."""
    parts = nn.ModuleDict({"text_encoder": model.text_encoder, "unet": model.unet, "vectors": vectors})
    return parts.requires_grad_(True)


@torch.no_grad()
def latents_of(vae: Any, pixels: npt.NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Latents [drawings, channels, cells, cells] of `pixels` [drawings, height, width, 3], scaled, fp16, on the CPU."""
    vae = vae.to(device)
    out = []
    for batch in np.array_split(pixels, max(1, len(pixels) // 100)):
        scaled = torch.from_numpy(batch).permute(0, 3, 1, 2).to(device).float() / 127.5 - 1
        mean = vae.encode(scaled.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        out.append((mean * vae.config.scaling_factor).half().cpu())
    return torch.cat(out)
