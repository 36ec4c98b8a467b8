"""Denoising, a call of the UNet at a time, for any mix of pictures whose latents have one shape."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from diffusion.checkpoint import BaseModel
from diffusion.schedulers import make_scheduler


class Denoising:
    """One picture on its way: its latents, its own scheduler, its own generator.

    `latents` is [1, channels, height, width]; `position` counts the calls of the denoiser that were made, of `calls`.
    """

    def __init__(
        self,
        model: BaseModel,
        *,
        embeds: torch.Tensor,
        negative: torch.Tensor | None,
        scheduler: str,
        steps: int,
        guidance: float,
        seed: int,
        width: int,
        height: int,
    ) -> None:
        """`embeds` and `negative` are hidden states [1, length, dims]; without `negative` there is no guidance. Sizes
        in pixels. Raises SchedulerUnknown."""
        self._rows = [embeds] if negative is None else [negative, embeds]
        self._guidance = guidance
        self._scheduler = make_scheduler(scheduler, model.scheduler_config, seed=seed)
        self._scheduler.set_timesteps(steps, device=model.device)
        self._timesteps = self._scheduler.timesteps
        # On the CPU whatever the device, so that a seed means the same everywhere.
        generator = torch.Generator("cpu").manual_seed(seed)
        accepted = inspect.signature(self._scheduler.step).parameters
        self._arguments: dict[str, Any] = {"generator": generator} if "generator" in accepted else {}
        scale = model.spec.vae_scale
        shape = (1, model.spec.latent_channels, height // scale, width // scale)
        noise = randn_tensor(shape, generator=generator, device=model.device, dtype=embeds.dtype)
        self.latents: torch.Tensor = noise * self._scheduler.init_noise_sigma
        self.position = 0

    @property
    def calls(self) -> int:
        """Calls of the denoiser in all."""
        return len(self._timesteps)

    @property
    def done(self) -> bool:
        return self.position == self.calls

    @property
    def hidden(self) -> Sequence[torch.Tensor]:
        """What each of its rows is conditioned on, the unconditional one first."""
        return self._rows

    @property
    def timestep(self) -> torch.Tensor:
        """The next call's timestep. Timesteps may repeat, so they are walked by position."""
        here: torch.Tensor = self._timesteps[self.position]
        return here

    def model_input(self) -> torch.Tensor:
        """What the next call sees for each of its rows; once a call."""
        scaled: torch.Tensor = self._scheduler.scale_model_input(self.latents, self.timestep)
        return scaled

    def advance(self, predicted: torch.Tensor) -> None:
        """Takes the scheduler's step with the call's rows of output, [rows, channels, height, width]."""
        if len(predicted) == 2:
            # Classifier-free guidance (arXiv 2207.12598), in the order of operations that diffusers' pipeline has.
            without, with_prompt = predicted.chunk(2)
            predicted = without + self._guidance * (with_prompt - without)
        self.latents = self._scheduler.step(
            predicted, self.timestep, self.latents, return_dict=False, **self._arguments
        )[0]
        self.position += 1


def step(model: BaseModel, pictures: Sequence[Denoising]) -> None:
    """One call of the denoiser for all `pictures`, and each one's own scheduler step.

    Schedulers, positions, guidance, words may all differ; latents must have one shape. One picture alone is computed to
    the last bit as by diffusers' own pipeline; in company the last bits may differ.
    """
    inputs, timesteps, hidden = [], [], []
    for picture in pictures:
        seen, when = picture.model_input(), picture.timestep.float()
        for row in picture.hidden:
            inputs.append(seen)
            timesteps.append(when)
            hidden.append(row)
    predicted = model.unet(
        torch.cat(inputs), torch.stack(timesteps), encoder_hidden_states=torch.cat(hidden), return_dict=False
    )[0]
    for picture, rows in zip(pictures, predicted.split([len(picture.hidden) for picture in pictures]), strict=True):
        picture.advance(rows)
