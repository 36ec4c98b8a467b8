"""`pseudoword learn`: pictures in, a word out."""

from pathlib import Path

import click

from pseudoword.cli.connection import Session, connected
from pseudoword.cli.following import follow
from pseudoword.client import Client, published
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1 import resources_pb2

_KINDS = {
    "object": registry_resources.CONCEPT_KIND_OBJECT,
    "style": registry_resources.CONCEPT_KIND_STYLE,
    "face": registry_resources.CONCEPT_KIND_FACE,
}

pictures_argument = click.argument(
    "pictures",
    nargs=-1,
    required=True,
    metavar="PICTURE...",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
)


@click.command()
@click.argument("concept")
@pictures_argument
@click.option("--init", "start", metavar="WORD", help="Word of the model's vocabulary to start from, such as dog.")
@click.option("--init-version", metavar="WORD", help="Version to start from: rex@1, rex@canary, or its resource name.")
@click.option("--init-best", is_flag=True, help="Start from the vocabulary's word that explains the pictures best.")
@click.option(
    "--init-learned",
    is_flag=True,
    help="Start from what the learned start says of the pictures.  [default, where it is]",
)
@click.option(
    "--at-once", is_flag=True, help="Publish the learned start as a first version within a second; the refined follows."
)
@click.option("--style", is_flag=True, help="The pictures share a style, not a thing.")
@click.option("--face", is_flag=True, help="The pictures show a person's face.")
@click.option(
    "--mask",
    "masks",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Picture that is white where the thing is; once for each picture, in their order.",
)
@click.option(
    "--vectors",
    type=click.IntRange(1, 16),
    help="Vectors of the word: more hold more, and cost room in a prompt.  [default: 1, or the start's]",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Equal pictures and seeds give equal words.")
@click.option("--steps", type=click.IntRange(1, 10_000), help="Optimiser steps.  [default: the recipe's]")
@click.option("--early-stop", is_flag=True, help="Stop when it has learned; --steps is then the limit.")
@connected
def learn(
    session: Session,
    *,
    concept: str,
    pictures: tuple[Path, ...],
    start: str | None,
    init_version: str | None,
    init_best: bool,
    init_learned: bool,
    at_once: bool,
    style: bool,
    face: bool,
    masks: tuple[Path, ...],
    vectors: int | None,
    seed: int,
    steps: int | None,
    early_stop: bool,
) -> None:
    """Learn <CONCEPT> from three to five pictures and publish it as the concept's next version.

    Pictures are PNG, JPEG or WebP. Ctrl-C cancels the job.
    """
    if style and face:
        raise click.UsageError("--style and --face exclude each other")
    if masks and len(masks) != len(pictures):
        raise click.UsageError(f"{len(masks)} masks for {len(pictures)} pictures: give one for each")
    client, output = session.client, session.output
    job = client.create_job(
        concept,
        pictures,
        kind=_KINDS["style" if style else "face" if face else "object"],
        start=_start(client, start, init_version, best=init_best, learned=init_learned),
        vectors=vectors or 0,
        seed=seed,
        recipe=_recipe(steps, early_stop),
        masks=masks,
        at_once=at_once,
    )
    job = follow(session, job, f"<{concept}>")
    version = client.version(published(job))
    loss = job.progress.smoothed_loss
    sentence = f"a cat in the style of <{concept}>" if style else f"a photo of <{concept}>"
    output.result(
        version,
        f"{version.name}  (loss {loss:.4f}; draw it: pseudoword draw '{sentence}' -o {concept}.png)"
        + (f"\nit is evaluated next: pseudoword show {concept}@{version.number}" if job.evaluation_job else ""),
    )


def _start(
    client: Client, words: str | None, version: str | None, *, best: bool, learned: bool
) -> resources_pb2.Start | None:
    if sum((words is not None, version is not None, best, learned)) > 1:
        raise click.UsageError("--init, --init-version, --init-best and --init-learned exclude each other")
    if learned:
        return resources_pb2.Start(learned=True)
    if version is not None:
        # As in the other commands, a word means a version of the tenant; a resource name is taken as it is.
        return resources_pb2.Start(version=version if "/versions/" in version else client.resolve(version).name)
    if best:
        return resources_pb2.Start(best_of_vocabulary=True)
    return resources_pb2.Start(words=words) if words is not None else None


def _recipe(steps: int | None, early_stop: bool) -> resources_pb2.Recipe:
    recipe = resources_pb2.Recipe(steps=steps)
    if early_stop:
        recipe.early_stopping = True
        recipe.schedule = resources_pb2.Recipe.SCHEDULE_HOLD_THEN_COOL
    return recipe
