"""`pseudoword learn`: pictures in, a word out."""

from contextlib import suppress
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pseudoword.cli.connection import Session, connected
from pseudoword.client import published
from pseudoword.errors import PseudowordError
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1 import resources_pb2

_KINDS = {
    "object": registry_resources.CONCEPT_KIND_OBJECT,
    "style": registry_resources.CONCEPT_KIND_STYLE,
}
_State = resources_pb2.Job.State


@click.command()
@click.argument("concept")
@click.argument(
    "pictures",
    nargs=-1,
    required=True,
    metavar="PICTURE...",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
)
@click.option("--init", "start", metavar="WORD", help="Word of the model's vocabulary to start from, such as dog.")
@click.option("--style", is_flag=True, help="The pictures share a style, not a thing.")
@click.option(
    "--vectors",
    type=click.IntRange(1, 16),
    default=1,
    help="Vectors of the word: more hold more, and cost room in a prompt.",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Equal pictures and seeds give equal words.")
@click.option("--steps", type=click.IntRange(1, 10_000), help="Optimiser steps.  [default: the recipe's]")
@connected
def learn(
    session: Session,
    *,
    concept: str,
    pictures: tuple[Path, ...],
    start: str | None,
    style: bool,
    vectors: int,
    seed: int,
    steps: int | None,
) -> None:
    """Learn <CONCEPT> from three to five pictures and publish it as the concept's next version.

    Pictures are PNG, JPEG or WebP. Ctrl-C cancels the job.
    """
    client, output = session.client, session.output
    job = client.create_job(
        concept,
        pictures,
        kind=_KINDS["style" if style else "object"],
        start=start,
        vectors=vectors,
        seed=seed,
        recipe=resources_pb2.Recipe(steps=steps) if steps else None,
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=output.progress, transient=True) as bars:
            bar = bars.add_task(f"<{concept}> queued", total=None, loss="", markup=False)
            for event in client.watch_job(job.name):
                if output.as_json:
                    output.result(event)
                if event.WhichOneof("event") == "job":
                    job = event.job
                    bars.update(bar, description=f"<{concept}> {_State.Name(job.state)[6:].lower()}")
                elif event.WhichOneof("event") == "progress":
                    now = event.progress
                    bars.update(bar, completed=now.step, total=now.steps, loss=f"loss {now.smoothed_loss:.4f}")
    except KeyboardInterrupt:
        # A job that is already publishing cannot be cancelled; then the word is there, which is no failure of ours.
        with suppress(PseudowordError):
            job = client.cancel_job(job.name)
        click.echo(f"{job.name} was cancelled", err=True)
        raise SystemExit(130) from None
    version = client.version(published(job))
    loss = job.progress.smoothed_loss
    output.result(
        version,
        f"{version.name}  (loss {loss:.4f}; draw it: pseudoword draw 'a photo of <{concept}>' -o {concept}.png)",
    )
