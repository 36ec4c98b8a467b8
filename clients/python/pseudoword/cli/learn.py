"""`pseudoword learn`: learns a word from pictures."""

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
@click.option("--init-best", is_flag=True, help="Start from the word of the vocabulary that fits the pictures best.")
@click.option(
    "--init-learned",
    is_flag=True,
    help="Start from the learned start's prediction.  [default, if the model has a learned start]",
)
@click.option(
    "--at-once",
    is_flag=True,
    help="Publish the learned start as a first version within a second, and the refined version after training.",
)
@click.option("--style", is_flag=True, help="The pictures share a style, not an object.")
@click.option("--face", is_flag=True, help="The pictures show a person's face.")
@click.option(
    "--mask",
    "masks",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Mask, white where the object is; give one for each picture, in the same order.",
)
@click.option(
    "--vectors",
    type=click.IntRange(1, 16),
    help="Vectors of the word: more hold more detail, and take more of a prompt.  [default: 1, or the start's]",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed; equal pictures and seeds give equal words.")
@click.option("--steps", type=click.IntRange(1, 10_000), help="Optimiser steps.  [default: the recipe's]")
@click.option("--early-stop", is_flag=True, help="Stop when the word no longer improves; --steps is then the limit.")
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

    Pictures are PNG, JPEG, WebP, HEIC or AVIF. Ctrl-C cancels the job.
    """
    if style and face:
        raise click.UsageError("--style and --face exclude each other: give one of them")
    if masks and len(masks) != len(pictures):
        raise click.UsageError(f"{len(masks)} masks for {len(pictures)} pictures: give one mask for each picture")
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
        + (f"\nits evaluation follows: pseudoword show {concept}@{version.number}" if job.evaluation_job else ""),
    )


def _start(
    client: Client, words: str | None, version: str | None, *, best: bool, learned: bool
) -> resources_pb2.Start | None:
    if sum((words is not None, version is not None, best, learned)) > 1:
        raise click.UsageError(
            "--init, --init-version, --init-best and --init-learned exclude each other: give one of them"
        )
    if learned:
        return resources_pb2.Start(learned=True)
    if version is not None:
        # A word is resolved, as in the other commands; a resource name is used unchanged.
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
