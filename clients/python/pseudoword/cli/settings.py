"""The drawing options, for every command that draws."""

import functools
from collections.abc import Callable
from typing import Any

import click

from pseudoword.generation.v1 import resources_pb2

_OPTIONS = (
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        help="Seed of the first picture; the same seed gives the same picture.",
    ),
    click.option("--steps", type=click.IntRange(1, 150), help="Denoising steps.  [default: the server's]"),
    click.option(
        "--guidance",
        type=click.FloatRange(1, 30),
        help="Guidance scale: how closely to follow the prompt.  [default: the server's]",
    ),
    click.option(
        "--scheduler",
        default="",
        show_default=False,
        metavar="NAME",
        help="Scheduler: ddim, euler-a, ...  [default: the server's]",
    ),
    click.option("--negative", default="", show_default=False, metavar="TEXT", help="Negative prompt: what to avoid."),
    click.option("--width", type=click.IntRange(1), help="Width in pixels.  [default: the model's]"),
    click.option("--height", type=click.IntRange(1), help="Height in pixels.  [default: the model's]"),
)


def drawing(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` these options as one argument, `settings`, with an empty prompt. Write it above `connected`, so
    that --help lists these options first."""

    @functools.wraps(command)
    def run(
        *,
        seed: int,
        steps: int | None,
        guidance: float | None,
        scheduler: str,
        negative: str,
        width: int | None,
        height: int | None,
        **arguments: Any,
    ) -> None:
        settings = resources_pb2.PictureSettings(
            negative_prompt=negative,
            seed=seed,
            steps=steps,
            guidance_scale=guidance,
            scheduler=scheduler,
            width=width,
            height=height,
        )
        command(settings=settings, **arguments)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run
