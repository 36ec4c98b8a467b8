"""Denoising, a call of the UNet at a time, for any mix of pictures whose latents have one shape."""

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
    """A picture to start from: RGB, of the result's size. The share `strength` (above 0 to 1) of the way is gone anew.

    With `mask` (grey, of the same size) only what is white in it is redrawn.
    """

    picture: Image.Image
    strength: float
    mask: Image.Image | None = None


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
        init_image: DecodedInitImage | None = None,
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
        # What inpainting puts back is noised by the scheduler, which then has to count the steps itself.
        self.solver = solver_of(self._scheduler) if self._kept is None else None
        self.before: torch.Tensor | None = None  # what a solver remembers of the last step
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
        """As diffusers' image-to-image and inpainting pipelines begin, draw for draw."""
        scheduler = self._scheduler
        self._timesteps = scheduler.timesteps[skipped:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped)
        clean = _encoded(model, init_image.picture, generator)
        if init_image.mask is not None:
            clean = clean.contiguous()  # as the inpainting pipeline's repeat() leaves them
        noise = randn_tensor(clean.shape, generator=generator, device=model.device, dtype=dtype)
        if init_image.mask is None or init_image.strength < 1:
            self.latents = scheduler.add_noise(clean, noise, self._timesteps[:1])
        else:
            self.latents = noise * scheduler.init_noise_sigma
        if init_image.mask is not None:
            # The pipeline encodes the masked picture here, which only checkpoints of nine channels use; it takes these
            # numbers from the generator.
            randn_tensor(clean.shape, generator=generator, device=model.device, dtype=dtype)
            levels = torch.from_numpy(np.array(init_image.mask.convert("L"), dtype=np.float32) / 255)[None, None]
            cells = torch.nn.functional.interpolate((levels >= 0.5).float(), size=clean.shape[-2:])
            self._kept = _Kept(clean=clean, noise=noise, redrawn=cells.to(model.device, dtype))

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

    @property
    def guidance(self) -> float:
        """Guidance scale; 1 where there is no unconditional row."""
        return self._guidance if len(self._rows) == 2 else 1.0

    @property
    def coefficients(self) -> torch.Tensor:
        """The solver's coefficients at the next call, one of each of `columns`."""
        here: torch.Tensor = self._table[self.position]
        return here

    @property
    def columns(self) -> Sequence[str]:
        """Names of the solver's coefficients."""
        return self._columns

    def model_input(self) -> torch.Tensor:
        """What the next call sees for each of its rows; once a call. For pictures without a solver."""
        scaled: torch.Tensor = self._scheduler.scale_model_input(self.latents, self.timestep)
        return scaled

    def advance(self, output: torch.Tensor) -> None:
        """Takes the scheduler's step with the call's guided output, [1, channels, height, width]. For pictures without
        a solver."""
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
    """What inpainting puts back after every step: latents [1, c, h, w], their noise, and 1 where they are redrawn."""

    clean: torch.Tensor
    noise: torch.Tensor
    redrawn: torch.Tensor


def _encoded(model: BaseModel, picture: Image.Image, generator: torch.Generator) -> torch.Tensor:
    shares = np.array(picture.convert("RGB"), dtype=np.float32)[None] / 255
    # In this order of axes and steps, as diffusers has it: memory layout decides the last bits of a convolution.
    pixels = torch.from_numpy(shares.transpose(0, 3, 1, 2))
    posterior = model.vae.encode((2.0 * pixels - 1.0).to(model.device, model.dtype)).latent_dist
    latents: torch.Tensor = model.vae.config.scaling_factor * posterior.sample(generator)
    return latents


def step(model: BaseModel, pictures: Sequence[Denoising], *, alone: bool = False) -> None:
    """One call of the denoiser for all `pictures`, and each one's step.

    Schedulers, positions, guidance, words may all differ; latents must have one shape. One picture alone is computed to
    the last bit as by diffusers' own pipeline; in company the last bits may differ. Pictures of one solver step as one
    tensor operation. `alone` keeps other servers' rows out of the call, where they share the denoiser. Raises
    DenoiserUnavailable and DenoiserRefused.
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
    """Columns [n, 1, 1, 1] of each coefficient of `pictures`, which have one solver."""
    rows = torch.stack([picture.coefficients for picture in pictures])
    return {name: rows[:, at, None, None, None] for at, name in enumerate(pictures[0].columns)}


def _guided(pictures: Sequence[Denoising], predicted: torch.Tensor) -> torch.Tensor:
    """One output a picture of the rows that were `predicted` for them, unconditional ones first.

    Classifier-free guidance (arXiv 2207.12598), in the order of operations that diffusers' pipeline has.
    """
    rows = torch.split(predicted, [len(picture.hidden) for picture in pictures])
    if all(len(own) == 1 for own in rows):
        return predicted
    without, with_prompt = torch.cat([own[:1] for own in rows]), torch.cat([own[-1:] for own in rows])
    # Filled on the device: a list of numbers would be copied there. One without guidance gives its one row.
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
