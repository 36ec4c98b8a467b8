"""Drawings and captions as files: `python -m miniature draw --help`."""

from pathlib import Path
from typing import cast

import click
import numpy as np

from miniature.captions import caption
from miniature.chance import choose
from miniature.paint import paint
from miniature.style import STYLE_NAMES, STYLES, StyleName
from miniature.world import (
    ACCESSORIES,
    COLOURS,
    KINDS,
    MAX_COUNT,
    PATTERNS,
    SCENES,
    SIDES,
    ColourName,
    Drawing,
    Kind,
    Pattern,
    Scene,
    Side,
    random_colour,
    random_toy,
)

_ACCESSORY_OPTIONS = {accessory.removeprefix("a "): accessory for accessory in ACCESSORIES}


@click.group()
def main() -> None:
    """The picture world that the bundled model was trained on."""


@main.command()
@click.option("--kind", type=click.Choice(KINDS), help="Absent: any, as for everything that is left out.")
@click.option("--colour", type=click.Choice(COLOURS), help="Colour of the toy.")
@click.option("--pattern", type=click.Choice(PATTERNS))
@click.option("--second", type=click.Choice(COLOURS), help="The pattern's other colour.")
@click.option("--style", type=click.Choice(STYLE_NAMES), default="photo", show_default=True)
@click.option("--scene", type=click.Choice(SCENES), help="Absent: a plain background.")
@click.option("--background", type=click.Choice(COLOURS), help="Colour of a plain background.")
@click.option("--accessory", type=click.Choice(list(_ACCESSORY_OPTIONS)), help="Absent: none.")
@click.option("--count", type=click.IntRange(1, MAX_COUNT), default=1, show_default=True, help="Toys, all alike.")
@click.option("--side", type=click.Choice(SIDES), help="Where a single toy stands; absent: about the middle.")
@click.option("--toy-seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which toy of that sort.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which drawing of that toy.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="A PNG.")
def draw(
    *,
    kind: str | None,
    colour: str | None,
    pattern: str | None,
    second: str | None,
    style: str,
    scene: str | None,
    background: str | None,
    accessory: str | None,
    count: int,
    side: str | None,
    toy_seed: int,
    seed: int,
    output: Path,
) -> None:
    """Draw one toy as a PNG of 64 pixels and print a caption of it.

    The same options give the same picture; with another --seed, another picture of the same toy.
    """
    toy = random_toy(
        np.random.default_rng(toy_seed),
        kind=cast(Kind | None, kind),
        colour=cast(ColourName | None, colour),
        pattern=cast(Pattern | None, pattern),
        second=cast(ColourName | None, second),
    )
    rng = np.random.default_rng(seed)
    backgrounds = [name for name in COLOURS if (name == background if background else name != toy.colour.name)]
    try:
        drawing = Drawing(
            toy=toy,
            background=random_colour(rng, choose(rng, backgrounds)),
            scene=cast(Scene | None, scene),
            style=STYLES[cast(StyleName, style)],
            accessory=None if accessory is None else _ACCESSORY_OPTIONS[accessory],
            count=count,
            side=cast(Side | None, side),
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    paint(drawing, rng).save(output, format="PNG", optimize=True)
    click.echo(caption(drawing, rng).plain)


_STAGES = ("drawings", "tokenizer", "vae", "classifier", "clip", "diffusion", "start", "finish")


@main.command()
@click.argument("stages", nargs=-1, type=click.Choice(_STAGES))
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".cache/miniature"),
    show_default=True,
    help="Where everything is made; what is there is gone on from.",
)
@click.option("--from-committed", is_flag=True, help="Begin with the weights in the repository instead of none.")
@click.option(
    "--share",
    type=click.FloatRange(min=0, min_open=True, max=1),
    default=1.0,
    help="Of the recipe's drawings and steps: 0.01 tries everything in minutes.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of what each step draws; another one where weights are gone on from that this one made.",
)
@click.option(
    "--latent-channels",
    type=click.IntRange(min=1),
    help="Of VAE and UNet that are made anew; absent: as the bundled ones have, 4.",
)
@click.option("--device", help="As torch names it, such as cuda:1; absent: the best that is there.")
@click.option("--threads", type=click.IntRange(min=1), help="Of the processor; absent: torch decides.")
def train(
    *,
    stages: tuple[str, ...],
    work: Path,
    from_committed: bool,
    share: float,
    seed: int,
    latent_channels: int | None,
    device: str | None,
    threads: int | None,
) -> None:
    """Train the bundled model and its judges from drawings, into WORK/finished.

    The stages, in order: drawings are painted; the tokenizer learns their captions; the vae learns to code them; the
    classifier and the clip learn to judge them; diffusion trains text encoder and UNet together; start fits the
    trainer's learned start. Each may be killed and
    started again, and goes on from its last minute; without names, stages that were finished are passed over. What a
    stage reached is drawn in WORK/<stage>/loss.png. Measure the result with `python -m benchmarks.miniature`.
    """
    import torch

    from miniature.training.layout import LATENT_CHANNELS
    from miniature.training.stages import run
    from miniature.training.work import Work, pick_device

    if from_committed and latent_channels is not None:
        raise click.UsageError("committed weights have their channels: leave out --latent-channels or --from-committed")

    if threads is not None:
        torch.set_num_threads(threads)
    committed = Path(__file__).parent if from_committed else None
    made = Work(
        folder=work,
        committed=committed,
        share=share,
        seed=seed,
        latent_channels=latent_channels or LATENT_CHANNELS,
        device=pick_device(device),
    )
    run(made, stages)
    if not stages or "finish" in stages:
        click.echo(work / "finished")


if __name__ == "__main__":
    main(prog_name="python -m miniature")
