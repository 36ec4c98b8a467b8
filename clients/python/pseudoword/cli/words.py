"""`pseudoword words`, `versions`, `show` and `watch`: the content of the registry."""

from datetime import UTC
from typing import Any

import click
from google.protobuf.timestamp_pb2 import Timestamp

from pseudoword.cli.connection import Session, connected
from pseudoword.cli.evaluate import summary
from pseudoword.names import ConceptName, VersionName
from pseudoword.registry.v1 import resources_pb2

_BARS = "▁▂▃▄▅▆▇█"


@click.command()
@connected
def words(session: Session) -> None:
    """List the tenant's words."""
    rows: list[tuple[Any, dict[str, str]]] = []
    for concept in session.client.words():
        name = ConceptName.parse(concept.name)
        aliases = ", ".join(f"{alias} → {number}" for alias, number in sorted(concept.aliases.items()))
        row = {
            "word": f"<{name.concept}>",
            "versions": str(concept.version_count),
            "latest": str(concept.latest_version or "-"),
            "aliases": aliases or "-",
            "updated": _time(concept.update_time),
        }
        rows.append((concept, row))
    columns = {"word": "WORD", "versions": "VERSIONS", "latest": "LATEST", "aliases": "ALIASES", "updated": "UPDATED"}
    session.output.table(columns, rows, "There are no words yet; learn one: pseudoword learn NAME PICTURE...")


@click.command()
@click.argument("concept")
@connected
def versions(session: Session, *, concept: str) -> None:
    """List the versions of CONCEPT, newest first."""
    rows: list[tuple[Any, dict[str, str]]] = []
    for version in session.client.versions(concept):
        row = {
            "word": f"<{concept}@{version.number}>",
            "state": resources_pb2.Version.State.Name(version.state)[6:].lower(),
            "aliases": ", ".join(version.aliases) or "-",
            "base": version.base_model.family or "unknown",
            "creator": version.creator,
            "created": _time(version.create_time),
            "digest": version.tensors_digest[:12],
        }
        rows.append((version, row))
    columns = {
        "word": "WORD",
        "state": "STATE",
        "aliases": "ALIASES",
        "base": "BASE MODEL",
        "creator": "BY",
        "created": "CREATED",
        "digest": "TENSORS",
    }
    session.output.table(columns, rows, f"<{concept}> has no version")


@click.command()
@click.argument("word", metavar="WORD[@ALIAS|@N]")
@connected
def show(session: Session, *, word: str) -> None:
    """Show a version: its base model, recipe, pictures and evaluations.

    With --json, the evaluations are printed after the version, newest first.
    """
    version = session.client.resolve(word)
    evaluations = list(session.client.evaluations(version.name))
    name = VersionName.parse(version.name)
    made = version.provenance
    encoders = ", ".join(f"{spec.name}: {spec.vectors} x {spec.dimensions}" for spec in version.base_model.encoders)
    lines = {
        "word": f"<{name.concept}@{name.version}>",
        "name": version.name,
        "state": resources_pb2.Version.State.Name(version.state)[6:].lower()
        + (f" ({version.yank_reason})" if version.yank_reason else ""),
        "aliases": ", ".join(version.aliases),
        "description": version.description,
        "labels": ", ".join(f"{key}={value}" for key, value in sorted(version.labels.items())),
        "base model": version.base_model.family or "unknown",
        "vectors": encoders,
        "tensors": version.tensors_digest,
        "made": resources_pb2.Provenance.Origin.Name(made.origin)[7:].lower()
        + (f" by {made.job}" if made.job else "")
        + (", as the first version, before training" if made.at_once else ""),
        "steps": f"{made.steps} (seed {made.seed}; {made.stop_reason})" if made.steps else "",
        "loss": f"{_sparkline([p.loss for p in made.loss_curve])}  {made.loss_curve[-1].loss:.4f}"
        if made.loss_curve
        else "",
        "pictures": ", ".join(digest[:12] for digest in made.picture_digests),
        "recipe": made.recipe_json,
        "created": f"{_time(version.create_time)} by {version.creator}",
    }
    width = max(map(len, lines))
    session.output.result(version, "\n".join(f"{key:<{width}}  {value}" for key, value in lines.items() if value))
    for evaluation in evaluations:
        text = f"{summary(evaluation)} ({evaluation.evaluator}, {_time(evaluation.create_time)})"
        session.output.result(evaluation, f"{'evaluated':<{width}}  {text}")


@click.command()
@click.option(
    "--after",
    "resume_token",
    default="",
    show_default=False,
    metavar="TOKEN",
    help="Resume token to continue after.  [default: now]",
)
@connected
def watch(session: Session, *, resume_token: str) -> None:
    """Print every event of the tenant until Ctrl-C, each exactly once."""
    try:
        for message in session.client.watch(resume_token=resume_token):
            if message.WhichOneof("message") == "event":
                event = message.event
                kind = resources_pb2.Event.Type.Name(event.type)[5:].lower().replace("_", " ")
                points = f" -> {event.version}" if event.version and event.version != event.resource else ""
                session.output.result(
                    message, f"{_time(event.event_time)}  {kind}  {event.resource}{points}  by {event.actor}"
                )
            elif session.output.as_json:
                session.output.result(message)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _time(timestamp: Timestamp) -> str:
    return timestamp.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _sparkline(values: list[float], width: int = 40) -> str:
    """A curve as one line of text; each character is the mean of an equal part of `values`."""
    width = min(width, len(values))
    parts = [values[len(values) * i // width : len(values) * (i + 1) // width] for i in range(width)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    return "".join(_BARS[round((mean - low) / ((high - low) or 1) * (len(_BARS) - 1))] for mean in means)
