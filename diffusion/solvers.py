"""Vectorised schedulers: the steps of many pictures as one tensor operation, for schedulers whose coefficients are
known in advance.

The formulas are those of diffusers, operation for operation, with one coefficient per picture in the place of the
scheduler's scalar, so each row gets the same bits. Nothing here waits for the device.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

Columns = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Solver:
    """The joint step of pictures with the same kind of scheduler.

    `table` gives a scheduler's coefficients: for each, a list with a 0-d tensor per call from number `begin` on.
    `step` takes the coefficients as columns [n, 1, 1, 1], the latents, the model's output and the memory of the
    previous step (any finite numbers at the first step), [n, channels, h, w] each. It returns the next latents and the
    new memory, which is used only if `remembers`. If `scaled`, the model's input is the latents divided by `scale`.
    """

    name: str
    table: Callable[[Any, int], dict[str, list[torch.Tensor]]]
    step: Callable[[Columns, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    scaled: bool = False
    remembers: bool = False


def solver_of(scheduler: Any) -> Solver | None:
    """The solver equivalent to `scheduler`; None when the scheduler must make the steps itself."""
    config = scheduler.config
    prediction = config.prediction_type
    if prediction not in ("epsilon", "v_prediction") or config.get("thresholding") or config.get("clip_sample"):
        return None
    kind = type(scheduler)
    if kind is DDIMScheduler and scheduler.num_inference_steps:
        return _DDIM[prediction]
    if kind is EulerDiscreteScheduler:
        return _EULER[prediction]
    plain = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "variance_type": None}
    if kind is DPMSolverMultistepScheduler and all(config[key] == value for key, value in plain.items()):
        return _DPM[prediction]
    return None


# DDIM (arXiv 2010.02502, equation 12 with eta 0).


def _ddim_table(scheduler: Any, begin: int) -> dict[str, list[torch.Tensor]]:
    table: dict[str, list[torch.Tensor]] = {"alpha": [], "beta": [], "alpha_to": [], "direction": []}
    for timestep in scheduler.timesteps.tolist()[begin:]:
        to = timestep - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        alpha = scheduler.alphas_cumprod[timestep]
        alpha_to = scheduler.alphas_cumprod[to] if to >= 0 else scheduler.final_alpha_cumprod
        table["alpha"].append(alpha**0.5)
        table["beta"].append((1 - alpha) ** 0.5)
        table["alpha_to"].append(alpha_to**0.5)
        table["direction"].append((1 - alpha_to) ** 0.5)
    return table


def _ddim_epsilon(
    at: Columns, latents: torch.Tensor, output: torch.Tensor, before: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    clean = (latents - at["beta"] * output) / at["alpha"]
    return at["alpha_to"] * clean + at["direction"] * output, output


def _ddim_v(
    at: Columns, latents: torch.Tensor, output: torch.Tensor, before: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    clean = at["alpha"] * latents - at["beta"] * output
    noise = at["alpha"] * output + at["beta"] * latents
    return at["alpha_to"] * clean + at["direction"] * noise, output


# Euler (arXiv 2206.00364, algorithm 2 without churn).


def _euler_table(scheduler: Any, begin: int) -> dict[str, list[torch.Tensor]]:
    table: dict[str, list[torch.Tensor]] = {"scale": [], "sigma": [], "step": [], "out": [], "skip": []}
    for sigma, to in zip(scheduler.sigmas[begin:-1], scheduler.sigmas[begin + 1 :], strict=True):
        table["scale"].append((sigma**2 + 1) ** 0.5)
        table["sigma"].append(sigma)
        table["step"].append(to - sigma)
        table["out"].append(-sigma / (sigma**2 + 1) ** 0.5)
        table["skip"].append(sigma**2 + 1)
    return table


def _euler_epsilon(
    at: Columns, latents: torch.Tensor, output: torch.Tensor, before: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    clean = latents - at["sigma"] * output
    return latents + (latents - clean) / at["sigma"] * at["step"], output


def _euler_v(
    at: Columns, latents: torch.Tensor, output: torch.Tensor, before: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    clean = output * at["out"] + latents / at["skip"]
    return latents + (latents - clean) / at["sigma"] * at["step"], output


# DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2). First order at the first step and, as in diffusers, at the last one
# under its conditions: the coefficients of the second-order term are then 0.


def _dpm_table(scheduler: Any, begin: int) -> dict[str, list[torch.Tensor]]:
    config, sigmas, steps = scheduler.config, scheduler.sigmas, len(scheduler.timesteps)
    keys = ("alpha", "sigma", "keep", "clean", "half", "ratio")
    table: dict[str, list[torch.Tensor]] = {key: [] for key in keys}
    for index in range(begin, steps):
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigmas[index])
        alpha_to, sigma_to = scheduler._sigma_to_alpha_sigma_t(sigmas[index + 1])
        lambda_from = torch.log(alpha) - torch.log(sigma)
        h = torch.log(alpha_to) - torch.log(sigma_to) - lambda_from
        clean = alpha_to * (torch.exp(-h) - 1.0)
        ends_low = config.euler_at_final or (config.lower_order_final and steps < 15)
        ends_low = ends_low or config.final_sigmas_type == "zero"
        if index == begin or (index == steps - 1 and ends_low):
            half = ratio = torch.zeros_like(clean)
        else:
            alpha_before, sigma_before = scheduler._sigma_to_alpha_sigma_t(sigmas[index - 1])
            r0 = (lambda_from - (torch.log(alpha_before) - torch.log(sigma_before))) / h
            half, ratio = 0.5 * clean, 1.0 / r0
        for key, value in zip(keys, (alpha, sigma, sigma_to / sigma, clean, half, ratio), strict=True):
            table[key].append(value)
    return table


def _dpm_step(at: Columns, latents: torch.Tensor, clean: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    slope = at["ratio"] * (clean - before)
    return at["keep"] * latents - at["clean"] * clean - at["half"] * slope


def _dpm_epsilon(
    at: Columns, latents: torch.Tensor, output: torch.Tensor, before: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    clean = (latents - at["sigma"] * output) / at["alpha"]
    return _dpm_step(at, latents, clean, before), clean


def _dpm_v(
    at: Columns, latents: torch.Tensor, output: torch.Tensor, before: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    clean = at["alpha"] * latents - at["sigma"] * output
    return _dpm_step(at, latents, clean, before), clean


_DDIM = {
    "epsilon": Solver("ddim", _ddim_table, _ddim_epsilon),
    "v_prediction": Solver("ddim-v", _ddim_table, _ddim_v),
}
_EULER = {
    "epsilon": Solver("euler", _euler_table, _euler_epsilon, scaled=True),
    "v_prediction": Solver("euler-v", _euler_table, _euler_v, scaled=True),
}
_DPM = {
    "epsilon": Solver("dpm++-2m", _dpm_table, _dpm_epsilon, remembers=True),
    "v_prediction": Solver("dpm++-2m-v", _dpm_table, _dpm_v, remembers=True),
}
