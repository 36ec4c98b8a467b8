"""The denoising loss of each row of a batch, through text encoder and UNet."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDPMScheduler
from pseudoword.names import WordRef

from diffusion.checkpoint import BaseModel
from diffusion.encoder import PromptEncoder
from trainer.training.latents import Latents
from trainer.training.samples import TrainingSample
from trainer.training.template_fitter import sentence


@dataclass(frozen=True, kw_only=True)
class Part:
    """One job's part of a batch: its `vectors` [n, dims], and `draws`, the samples of its rows."""

    vectors: torch.Tensor
    latents: Latents
    draws: Sequence[TrainingSample]
    min_snr_gamma: float = 0.0


class RowLosses:
    """The denoising loss on one frozen model (arXiv 2208.01618, eq. 1). Stateless."""

    def __init__(self, model: BaseModel, encoder: PromptEncoder) -> None:
        self._model = model
        self._encoder = encoder
        self._noise = DDPMScheduler.from_config(model.scheduler_config)

    def of(self, parts: Sequence[Part]) -> torch.Tensor:
        """Loss of each row, fp32 [rows]: the squared error of the prediction, weighted by the mask, and by min-SNR if
        the part's gamma is above 0."""
        model = self._model
        words = [WordRef(None, f"w{index}") for index in range(len(parts))]
        device = model.device
        draws = [one for part in parts for one in part.draws]
        prompts = [sentence(one.sentence, word) for word, part in zip(words, parts, strict=True) for one in part.draws]
        picked = [[one.picture for one in part.draws] for part in parts]
        means, deviations, weights = (
            torch.cat([getattr(part.latents, name)[rows] for part, rows in zip(parts, picked, strict=True)])
            for name in ("means", "deviations", "weights")
        )
        posterior_noise = torch.from_numpy(np.stack([one.posterior_noise for one in draws])).to(device)
        noise = torch.from_numpy(np.stack([one.noise for one in draws])).to(device)
        timesteps = torch.tensor([one.timestep for one in draws], device=device)
        clean = means + deviations * posterior_noise
        noisy = self._noise.add_noise(clean, noise, timesteps)
        vectors = {word: part.vectors for word, part in zip(words, parts, strict=True)}
        hidden = self._encoder.encode(prompts, vectors)
        predicted = model.unet(noisy.to(model.dtype), timesteps, hidden.to(model.dtype)).sample.float()
        if model.spec.prediction_type == "v_prediction":
            target = self._noise.get_velocity(clean, noise, timesteps)
        else:
            target = noise
        by_row: torch.Tensor = ((predicted - target).square() * weights).mean(dim=(1, 2, 3))
        gammas = [part.min_snr_gamma for part in parts for _ in part.draws]
        if any(gammas):
            by_row = by_row * self._min_snr(timesteps, torch.tensor(gammas, device=device))
        return by_row

    def _min_snr(self, timesteps: torch.Tensor, gammas: torch.Tensor) -> torch.Tensor:
        """Weights of arXiv 2303.09556, eq. 7, for the model's prediction type; 1 where gamma is 0."""
        signal = self._noise.alphas_cumprod.to(timesteps.device)[timesteps]
        snr = signal / (1 - signal)
        velocity = self._model.spec.prediction_type == "v_prediction"
        weights = torch.minimum(snr, gammas) / (snr + 1 if velocity else snr)
        return torch.where(gammas > 0, weights, torch.ones_like(weights))
