"""Commands to draw a picture of the world and to train the bundled model: `python -m miniature --help`."""

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
@click.option(
    "--kind", type=click.Choice(KINDS), help="Kind of the toy; absent: random, as for all options without a default."
)
@click.option("--colour", type=click.Choice(COLOURS), help="Colour of the toy.")
@click.option("--pattern", type=click.Choice(PATTERNS), help="Pattern of the toy.")
@click.option("--second", type=click.Choice(COLOURS), help="Second colour, of the pattern.")
@click.option(
    "--style", type=click.Choice(STYLE_NAMES), default="photo", show_default=True, help="Style of the drawing."
)
@click.option("--scene", type=click.Choice(SCENES), help="Scene behind the toy; absent: a plain background.")
@click.option("--background", type=click.Choice(COLOURS), help="Colour of a plain background.")
@click.option("--accessory", type=click.Choice(list(_ACCESSORY_OPTIONS)), help="Accessory of the toy; absent: none.")
@click.option("--count", type=click.IntRange(1, MAX_COUNT), default=1, show_default=True, help="Number of equal toys.")
@click.option("--side", type=click.Choice(SIDES), help="Side on which a single toy stands; absent: near the middle.")
@click.option("--toy-seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the toy.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the drawing.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="PNG file to write."
)
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
    help="Folder for all results; an interrupted training continues from it.",
)
@click.option("--from-committed", is_flag=True, help="Start from the weights in the repository instead of random ones.")
@click.option(
    "--share",
    type=click.FloatRange(min=0, min_open=True, max=1),
    default=1.0,
    help="Fraction of the recipe's drawings and steps; 0.01 runs all stages in minutes.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the batches. To continue from weights that were trained with a seed, give another one.",
)
@click.option(
    "--latent-channels",
    type=click.IntRange(min=1),
    help="Latent channels of a new VAE and UNet; absent: 4, as in the bundled model.",
)
@click.option("--device", help="Device in torch's notation, such as cuda:1; absent: cuda if available, otherwise cpu.")
@click.option("--threads", type=click.IntRange(min=1), help="Number of CPU threads; absent: torch's default.")
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
    """Train the bundled model and its judges on drawings, into WORK/finished.

    The stages, in order: drawings paints the training pictures; tokenizer trains the tokenizer on their captions; vae
    trains the VAE; classifier and clip train the judges; diffusion trains text encoder and UNet together; start fits
    the trainer's learned start; finish copies the results into WORK/finished. A stage that was killed continues from a
    checkpoint of at most a minute before. Without STAGES, finished stages are skipped. WORK/<stage>/loss.png shows the
    loss of a stage. `python -m benchmarks.miniature` measures the result.
    """
    import torch

    from miniature.training.layout import LATENT_CHANNELS
    from miniature.training.stages import run
    from miniature.training.work import Work, pick_device

    if from_committed and latent_channels is not None:
        raise click.UsageError("committed weights have a fixed number of channels: leave out --latent-channels")

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
