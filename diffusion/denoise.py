"""Denoising, one call of the UNet at a time, for any mix of pictures with latents of the same shape."""

import inspect
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from diffusion.checkpoint import BaseModel
from diffusion.schedulers import SCHEDULERS, make_scheduler
from diffusion.solvers import Solver, solver_of


@dataclass(frozen=True, kw_only=True)
class DecodedInitImage:
    """The initial picture of image-to-image: RGB, of the result's size. `strength` in (0, 1]: the fraction of the
    schedule that is rerun.

    `mask`: grey, of the same size; only its white areas are redrawn (inpainting).
    """

    picture: Image.Image
    strength: float
    mask: Image.Image | None = None


class Denoising:
    """One picture in progress: its latents, its own scheduler and its own random generator.

    `latents` is [1, channels, height, width]; `position` is the number of denoiser calls made, out of `calls`.
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
        init_image: DecodedInitImage | None = None,
    ) -> None:
        """`embeds` and `negative` are hidden states [1, length, dims]; without `negative` there is no guidance. Sizes
        in pixels. Raises SchedulerUnknown."""
        self._rows = [embeds] if negative is None else [negative, embeds]
        self._guidance = guidance
        self._scheduler = make_scheduler(scheduler, model.scheduler_config, seed=seed)
        self._scheduler.set_timesteps(steps, device=model.device)
        self._timesteps = self._scheduler.timesteps
        # Always on the CPU, so that a seed gives the same noise on every device.
        generator = torch.Generator("cpu").manual_seed(seed)
        accepted = inspect.signature(self._scheduler.step).parameters
        self._arguments: dict[str, Any] = {"generator": generator} if "generator" in accepted else {}
        self._kept: _Kept | None = None
        scale = model.spec.vae_scale
        shape = (1, model.spec.latent_channels, height // scale, width // scale)
        if init_image is None:
            noise = randn_tensor(shape, generator=generator, device=model.device, dtype=embeds.dtype)
            self.latents: torch.Tensor = noise * self._scheduler.init_noise_sigma
        else:
            skipped = SCHEDULERS[scheduler].skipped_calls(steps, init_image.strength)
            self._begin(model, init_image, skipped, generator, embeds.dtype)
        self.position = 0
        # Inpainting noises the kept area with the scheduler, which must then make the steps itself.
        self.solver = solver_of(self._scheduler) if self._kept is None else None
        self.before: torch.Tensor | None = None  # the solver's memory of the previous step
        if self.solver is not None:
            columns = self.solver.table(self._scheduler, self._scheduler.timesteps.shape[0] - self.calls)
            self._columns = tuple(columns)
            self._table = torch.stack([torch.stack(column) for column in columns.values()], dim=1).to(model.device)

    def _begin(
        self,
        model: BaseModel,
        init_image: DecodedInitImage,
        skipped: int,
        generator: torch.Generator,
        dtype: torch.dtype,
    ) -> None:
        """Prepare the latents like diffusers' image-to-image and inpainting pipelines, with the same random draws in
        the same order."""
        scheduler = self._scheduler
        self._timesteps = scheduler.timesteps[skipped:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped)
        clean = _encoded(model, init_image.picture, generator)
        if init_image.mask is not None:
            clean = clean.contiguous()  # the memory layout after the inpainting pipeline's repeat()
        noise = randn_tensor(clean.shape, generator=generator, device=model.device, dtype=dtype)
        if init_image.mask is None or init_image.strength < 1:
            self.latents = scheduler.add_noise(clean, noise, self._timesteps[:1])
        else:
            self.latents = noise * scheduler.init_noise_sigma
        if init_image.mask is not None:
            # Here the pipeline encodes the masked picture, which only checkpoints with nine channels use. That takes
            # this many numbers from the generator.
            randn_tensor(clean.shape, generator=generator, device=model.device, dtype=dtype)
            levels = torch.from_numpy(np.array(init_image.mask.convert("L"), dtype=np.float32) / 255)[None, None]
            cells = torch.nn.functional.interpolate((levels >= 0.5).float(), size=clean.shape[-2:])
            self._kept = _Kept(clean=clean, noise=noise, redrawn=cells.to(model.device, dtype))

    @property
    def calls(self) -> int:
        """The total number of denoiser calls."""
        return len(self._timesteps)

    @property
    def done(self) -> bool:
        return self.position == self.calls

    @property
    def hidden(self) -> Sequence[torch.Tensor]:
        """The hidden states that condition each of its rows, the unconditional row first."""
        return self._rows

    @property
    def timestep(self) -> torch.Tensor:
        """The next call's timestep. Timesteps may repeat, so they are found by position."""
        here: torch.Tensor = self._timesteps[self.position]
        return here

    @property
    def guidance(self) -> float:
        """The guidance scale; 1 without an unconditional row."""
        return self._guidance if len(self._rows) == 2 else 1.0

    @property
    def coefficients(self) -> torch.Tensor:
        """The solver's coefficients for the next call, one for each of `columns`."""
        here: torch.Tensor = self._table[self.position]
        return here

    @property
    def columns(self) -> Sequence[str]:
        """Names of the solver's coefficients."""
        return self._columns

    def model_input(self) -> torch.Tensor:
        """The model input of the next call, the same for each of its rows. Call it once per denoiser call. Only for
        pictures without a solver."""
        scaled: torch.Tensor = self._scheduler.scale_model_input(self.latents, self.timestep)
        return scaled

    def advance(self, output: torch.Tensor) -> None:
        """Make the scheduler's step with the call's guided output, [1, channels, height, width]. Only for pictures
        without a solver."""
        self.latents = self._scheduler.step(output, self.timestep, self.latents, return_dict=False, **self._arguments)[
            0
        ]
        self.position += 1
        if self._kept is not None:
            kept = self._kept.clean
            if not self.done:
                when = self.timestep.reshape(1)
                kept = self._scheduler.add_noise(kept, self._kept.noise, when)
            self.latents = (1 - self._kept.redrawn) * kept + self._kept.redrawn * self.latents


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """The area that inpainting restores after every step: clean latents [1, c, h, w], their noise, and `redrawn`, which
    is 1 in the cells that are redrawn."""

    clean: torch.Tensor
    noise: torch.Tensor
    redrawn: torch.Tensor


def _encoded(model: BaseModel, picture: Image.Image, generator: torch.Generator) -> torch.Tensor:
    shares = np.array(picture.convert("RGB"), dtype=np.float32)[None] / 255
    # The same order of axes and operations as in diffusers: the memory layout decides the last bits of a convolution.
    pixels = torch.from_numpy(shares.transpose(0, 3, 1, 2))
    posterior = model.vae.encode((2.0 * pixels - 1.0).to(model.device, model.dtype)).latent_dist
    latents: torch.Tensor = model.vae.config.scaling_factor * posterior.sample(generator)
    return latents


def step(model: BaseModel, pictures: Sequence[Denoising], *, alone: bool = False) -> None:
    """One call of the denoiser for all `pictures`, and then one scheduler step for each.

    Schedulers, positions, guidance and words may differ; latents must have the same shape. A single picture equals that
    of diffusers' own pipeline to the last bit; with several pictures the last bits may differ. Pictures with the same
    solver make their steps as one tensor operation. `alone`: no rows of other servers share the call of a remote
    denoiser. Raises DenoiserUnavailable and DenoiserRefused.
    """
    groups: dict[Solver, list[Denoising]] = defaultdict(list)
    for picture in pictures:
        if picture.solver is not None:
            groups[picture.solver].append(picture)
    coefficients = {solver: _coefficients(members) for solver, members in groups.items()}
    seen = {id(picture): picture.model_input() for picture in pictures if picture.solver is None}
    for solver, members in groups.items():
        latents = torch.cat([picture.latents for picture in members])
        if solver.scaled:
            latents = latents / coefficients[solver]["scale"]
        seen |= zip(map(id, members), _singles(latents.to(members[0].latents.dtype)), strict=True)

    inputs, timesteps, hidden = [], [], []
    for picture in pictures:
        when = picture.timestep.float()
        for row in picture.hidden:
            inputs.append(seen[id(picture)])
            timesteps.append(when)
            hidden.append(row)
    predicted = model.denoiser.predict(torch.cat(inputs), torch.stack(timesteps), torch.cat(hidden), alone=alone)
    outputs = dict(zip(map(id, pictures), _singles(_guided(pictures, predicted)), strict=True))

    for picture in pictures:
        if picture.solver is None:
            picture.advance(outputs[id(picture)])
    for solver, members in groups.items():
        _advance(solver, members, coefficients[solver], torch.cat([outputs[id(picture)] for picture in members]))


def _coefficients(pictures: Sequence[Denoising]) -> Mapping[str, torch.Tensor]:
    """Each coefficient of `pictures`, which have the same solver, as a column [n, 1, 1, 1]."""
    rows = torch.stack([picture.coefficients for picture in pictures])
    return {name: rows[:, at, None, None, None] for at, name in enumerate(pictures[0].columns)}


def _guided(pictures: Sequence[Denoising], predicted: torch.Tensor) -> torch.Tensor:
    """The guided output of each picture, from the `predicted` rows of all pictures (each picture's unconditional row
    first).

    Classifier-free guidance (arXiv 2207.12598), with the same order of operations as in diffusers' pipeline.
    """
    rows = torch.split(predicted, [len(picture.hidden) for picture in pictures])
    if all(len(own) == 1 for own in rows):
        return predicted
    without, with_prompt = torch.cat([own[:1] for own in rows]), torch.cat([own[-1:] for own in rows])
    # Created on the device, which saves a copy. For a picture without guidance both terms are its only row.
    scales = torch.cat(
        [own.new_full((1, 1, 1, 1), picture.guidance) for picture, own in zip(pictures, rows, strict=True)]
    )
    return without + scales * (with_prompt - without)


def _advance(
    solver: Solver, pictures: Sequence[Denoising], at: Mapping[str, torch.Tensor], outputs: torch.Tensor
) -> None:
    latents = torch.cat([picture.latents for picture in pictures])
    before = outputs
    if solver.remembers:
        before = torch.cat([picture.latents if picture.before is None else picture.before for picture in pictures])
    after, remembered = solver.step(at, latents, outputs, before)
    own, memories = _singles(after.to(latents.dtype)), _singles(remembered)
    for picture, latent, memory in zip(pictures, own, memories, strict=True):
        picture.latents = latent
        picture.before = memory if solver.remembers else None
        picture.position += 1


def _singles(rows: torch.Tensor) -> Sequence[torch.Tensor]:
    return [rows[at : at + 1] for at in range(len(rows))]
