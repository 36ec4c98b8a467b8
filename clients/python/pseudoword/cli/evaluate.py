"""`pseudoword evaluate`: measures a version."""

from pathlib import Path

import click

from pseudoword.cli.connection import Session, connected
from pseudoword.cli.following import follow
from pseudoword.cli.learn import pictures_argument
from pseudoword.client import published
from pseudoword.registry.v1 import resources_pb2 as registry_resources

_MEANINGS = {
    "held_out_loss": "loss on the pictures, new noise; lower is better",
    "clip_i": "CLIP, drawn and given pictures; higher is better",
    "clip_t": "CLIP, drawn pictures and prompts; higher is better",
    "dino": "DINO, drawn and given pictures; higher is better",
}


@click.command()
@click.argument("word", metavar="WORD[@ALIAS|@N]")
@pictures_argument
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed; figures with the same seed can be compared.")
@connected
def evaluate(session: Session, *, word: str, pictures: tuple[Path, ...], seed: int) -> None:
    """Evaluate a version on pictures of its concept, best on pictures that it was not learned from.

    The figures are stored with the version: see `pseudoword show WORD`. Training has priority, so the evaluation may
    wait. Ctrl-C cancels it.
    """
    version = session.client.resolve(word)
    job = session.client.create_evaluation(version.name, pictures, seed=seed)
    job = follow(session, job, f"<{word}>")
    evaluation = session.client.evaluation(published(job))
    if session.output.as_json:
        session.output.result(evaluation)
        return
    rows = [
        (evaluation, {"figure": name, "value": f"{value:.4f}", "meaning": _MEANINGS.get(name, "")})
        for name, value in sorted(evaluation.metrics.items())
    ]
    session.output.table({"figure": "FIGURE", "value": "VALUE", "meaning": "MEANING"}, rows, "no figures")
    session.output.result(evaluation, evaluation.name)


def summary(evaluation: registry_resources.Evaluation) -> str:
    """The figures in one line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in sorted(evaluation.metrics.items()))
