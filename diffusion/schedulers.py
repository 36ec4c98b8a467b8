"""The available schedulers: one table of name, class, arguments and number of model calls.

Names are the common ones; a scheduler is a class of diffusers, configured from the checkpoint's own scheduler. Each
picture has its own object, because the object holds the picture's state.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusion.errors import SchedulerUnknown


def _one_a_step(steps: int) -> int:
    return steps


def _second_order(steps: int) -> int:
    return 2 * steps - 1


@dataclass(frozen=True, kw_only=True)
class SchedulerKind:
    """`calls` maps a number of steps to the number of denoiser calls; `calls_a_step` is the number at each step.
    `seeded`: the scheduler takes the noise's seed when it is created, instead of a generator at each step."""

    description: str
    class_name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    calls: Callable[[int], int] = _one_a_step
    calls_a_step: int = 1
    max_steps: int = 1000
    seeded: bool = False

    def skipped_calls(self, steps: int, strength: float) -> int:
        """Denoiser calls that image-to-image skips at `strength` in (0, 1], the fraction of the schedule that is rerun;
        counted as in diffusers. When no step is left, at least all calls are skipped."""
        return (steps - min(int(steps * strength), steps)) * self.calls_a_step

    def model_calls(self, steps: int, strength: float = 1.0) -> int:
        """The number of denoiser calls; 0 when `strength` leaves no step."""
        return self.calls(steps) - self.skipped_calls(steps, strength) if int(steps * strength) else 0


def _dpm(**arguments: Any) -> dict[str, Any]:
    return {"class_name": "DPMSolverMultistepScheduler", "arguments": arguments}


_SDE = {"algorithm_type": "sde-dpmsolver++"}
_KARRAS = {"use_karras_sigmas": True}

SCHEDULERS: Mapping[str, SchedulerKind] = {
    "ddim": SchedulerKind(description="DDIM (arXiv 2010.02502), deterministic", class_name="DDIMScheduler"),
    "ddpm": SchedulerKind(description="DDPM (arXiv 2006.11239), adds noise at every step", class_name="DDPMScheduler"),
    "euler": SchedulerKind(description="Euler (arXiv 2206.00364)", class_name="EulerDiscreteScheduler"),
    "euler-a": SchedulerKind(
        description="Euler ancestral, adds noise at every step",
        class_name="EulerAncestralDiscreteScheduler",
    ),
    "dpm++-2m": SchedulerKind(description="DPM-Solver++ 2M (arXiv 2211.01095)", **_dpm()),
    "dpm++-2m-karras": SchedulerKind(description="DPM-Solver++ 2M with Karras' sigmas", **_dpm(**_KARRAS)),
    "dpm++-2m-sde": SchedulerKind(description="DPM-Solver++ 2M SDE, adds noise at every step", **_dpm(**_SDE)),
    "dpm++-2m-sde-karras": SchedulerKind(
        description="DPM-Solver++ 2M SDE with Karras' sigmas", **_dpm(**_SDE, **_KARRAS)
    ),
    "dpm++-sde": SchedulerKind(
        description="DPM-Solver++ SDE of second order, two calls a step",
        class_name="DPMSolverSDEScheduler",
        calls=_second_order,
        calls_a_step=2,
        seeded=True,
    ),
    "dpm++-sde-karras": SchedulerKind(
        description="DPM-Solver++ SDE of second order with Karras' sigmas, two calls a step",
        class_name="DPMSolverSDEScheduler",
        arguments=_KARRAS,
        calls=_second_order,
        calls_a_step=2,
        seeded=True,
    ),
    "heun": SchedulerKind(
        description="Heun (arXiv 2206.00364), two calls a step",
        class_name="HeunDiscreteScheduler",
        calls=_second_order,
        calls_a_step=2,
    ),
    "lms": SchedulerKind(description="Linear multistep", class_name="LMSDiscreteScheduler"),
    "lms-karras": SchedulerKind(
        description="Linear multistep with Karras' sigmas", class_name="LMSDiscreteScheduler", arguments=_KARRAS
    ),
    "pndm": SchedulerKind(
        description="PNDM (arXiv 2202.09778) without Runge-Kutta steps, one call more than steps",
        class_name="PNDMScheduler",
        arguments={"skip_prk_steps": True},
        calls=lambda steps: steps + 1 if steps > 1 else 1,
    ),
    "lcm": SchedulerKind(
        description="LCM (arXiv 2310.04378), 1 to 8 steps, for checkpoints that were distilled for it",
        class_name="LCMScheduler",
        max_steps=50,
    ),
    "unipc": SchedulerKind(description="UniPC (arXiv 2302.04867)", class_name="UniPCMultistepScheduler"),
}


def make_scheduler(name: str, config: Mapping[str, Any], *, seed: int) -> Any:
    """A new scheduler object of kind `name` with a checkpoint's configuration. Raises SchedulerUnknown.

    The same as diffusers' from_config, without its warnings about keys of another class's configuration.
    """
    kind = SCHEDULERS.get(name)
    if kind is None:
        raise SchedulerUnknown(f"{name[:64]!r} is not one of {', '.join(sorted(SCHEDULERS))}", scheduler=name[:64])
    import diffusers  # takes seconds, and a server's --help imports the table above

    scheduler_class = getattr(diffusers, kind.class_name)
    # A value that the checkpoint's file does not set is the default of this class, not of the file's class.
    left_out = set(config.get("_use_default_values", ()))
    known = inspect.signature(scheduler_class.__init__).parameters
    arguments = {key: value for key, value in config.items() if key in known and key not in left_out}
    arguments |= kind.arguments
    if kind.seeded:
        arguments["noise_sampler_seed"] = seed
    return scheduler_class(**arguments)
