"""`pseudoword evaluate`: how good a version is, in figures."""

from pathlib import Path

import click

from pseudoword.cli.connection import Session, connected
from pseudoword.cli.following import follow
from pseudoword.cli.learn import pictures_argument
from pseudoword.client import published
from pseudoword.registry.v1 import resources_pb2 as registry_resources

_MEANINGS = {
    "held_out_loss": "loss on the pictures, by new draws: less is better",
    "clip_i": "what it draws and the pictures, by CLIP: 1 is alike",
    "clip_t": "what it draws and what was asked, by CLIP: 1 is alike",
    "dino": "what it draws and the pictures, by DINO: 1 is alike",
}


@click.command()
@click.argument("word", metavar="WORD[@ALIAS|@N]")
@pictures_argument
@click.option("--seed", type=click.IntRange(0), default=0, help="Equal seeds make figures that can be compared.")
@connected
def evaluate(session: Session, *, word: str, pictures: tuple[Path, ...], seed: int) -> None:
    """Measure a version on pictures of what it should say, best on some that it was not learned from.

    The figures stay with the version: `pseudoword show WORD`. Training goes first, so this may wait. Ctrl-C cancels.
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
