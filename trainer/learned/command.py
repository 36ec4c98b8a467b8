"""The command `python -m trainer fit-start`."""

from pathlib import Path

import click

from diffusion.loading import load_model
from diffusion.pictures import PictureLimits
from diffusion.settings import ModelSettings
from rpc.settings import SettingsError
from trainer.learned.concepts import Concept, FolderInvalid, read_concepts
from trainer.learned.fit import fit
from trainer.learned.fitting import Plan
from trainer.training.start_network import place, save

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command("fit-start")
@click.option(
    "--objects", type=_FOLDER, help="Folder of things: each subfolder is a thing, and each picture beside them too."
)
@click.option("--styles", type=_FOLDER, help="Folder of styles, laid out in the same way.")
@click.option("--model", help="Folder or hub id of the checkpoint; absent: the bundled miniature.")
@click.option("--device", default="auto", show_default=True, help="Device, in torch's notation.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; absent: torch decides.")
@click.option("--steps", type=click.IntRange(min=1), default=3000, show_default=True, help="Optimiser steps.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Concepts of each kind in a step."
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=2e-3, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--work",
    type=_FOLDER,
    default=Path(".cache/fit-start"),
    show_default=True,
    help="Folder of the checkpoint, from which a killed run resumes.",
)
@click.option(
    "-o",
    "--output",
    type=_FOLDER,
    help="Folder to write; absent: learned_start beside the checkpoint, if that is a folder.",
)
def fit_start(
    *,
    objects: Path | None,
    styles: Path | None,
    model: str | None,
    device: str,
    threads: int | None,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    work: Path,
    output: Path | None,
) -> None:
    """Fit a learned start for a checkpoint: a small network that predicts a word's initial vector from its pictures.

    If a subfolder of --objects or --styles contains a word beside its pictures (a safetensors file, as `pseudoword
    export` writes it), the network is fitted to that word; otherwise it is fitted by the denoising loss on the
    pictures. Any folder of pictures is therefore suitable; more pictures give a better start. The trainer uses the
    learned start beside its checkpoint.
    """
    folders = {"object": objects, "style": styles}
    if not any(folders.values()):
        raise click.UsageError("--objects, --styles or both are required")
    target = output or _beside(model)
    try:
        base = load_model(ModelSettings(source=model, device=device, threads=threads))
        concepts: dict[str, list[Concept]] = {}
        for kind, folder in folders.items():
            if folder is not None:
                concepts[kind] = list(read_concepts(folder, base, PictureLimits()))
                known = sum(one.vector is not None for one in concepts[kind])
                click.echo(f"{kind}s: {len(concepts[kind])}, with a word: {known}", err=True)
        network = fit(base, concepts, Plan(steps=steps, batch=batch, rate=rate, warmup=100, seed=seed), work)
    except (FolderInvalid, SettingsError) as error:
        raise click.ClickException(str(error)) from None
    save(network, base.spec, target)
    (work / "checkpoint.pt").unlink(missing_ok=True)
    click.echo(target)


def _beside(model: str | None) -> Path:
    if model is not None and not Path(model).expanduser().is_dir():
        raise click.UsageError(f"{model} is not a folder: give the folder for the learned start with -o")
    return place(model)
