"""The options that say how a picture is drawn, for every command that draws."""

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
        help="The first picture's seed; the same seed gives the same picture.",
    ),
    click.option("--steps", type=click.IntRange(1, 150), help="Denoising steps.  [default: the server's]"),
    click.option(
        "--guidance", type=click.FloatRange(1, 30), help="How closely to follow the sentence.  [default: the server's]"
    ),
    click.option("--scheduler", default="", help="How to denoise: ddim, euler-a, ...  [default: the server's]"),
    click.option("--negative", default="", metavar="TEXT", help="What to stay away from."),
    click.option("--width", type=click.IntRange(1), help="In pixels.  [default: the model's]"),
    click.option("--height", type=click.IntRange(1), help="In pixels.  [default: the model's]"),
)


def drawing(command: Callable[..., None]) -> Callable[..., None]:
    """Gives `command` these options as one argument, `settings`, whose prompt is still empty. Stands above `connected`,
    so that help has them first."""

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
