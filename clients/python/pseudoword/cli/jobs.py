"""`pseudoword jobs`: the trainer's jobs."""

from datetime import timedelta
from pathlib import Path

import click

from pseudoword.cli.connection import Session, connected
from pseudoword.cli.following import loss_of
from pseudoword.names import ConceptName, VersionName
from pseudoword.trainer.v1 import resources_pb2

_State = resources_pb2.Job.State


@click.group()
def jobs() -> None:
    """List, watch, cancel and retry the trainer's jobs."""


@jobs.command("list")
@click.option(
    "--filter",
    "filter_",
    default="",
    show_default=False,
    metavar="FILTER",
    help='AIP-160 filter, such as "state = FAILED AND concept:rex".',
)
@connected
def list_(session: Session, *, filter_: str) -> None:
    """List the tenant's jobs, newest first."""
    for job in session.client.jobs(filter_):
        session.output.result(job, _line(job))


@jobs.command()
@click.argument("job")
@click.option(
    "--previews",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    help="Draw previews and save them in this folder.",
)
@click.option(
    "--every", type=click.FloatRange(1, 3600), default=10.0, metavar="S", help="Seconds between two previews."
)
@connected
def watch(session: Session, *, job: str, previews: Path | None, every: float) -> None:
    """Print the events of JOB until it has ended; with --previews, also draw previews of its word."""
    interval = timedelta(seconds=every) if previews is not None else None
    for event in session.client.watch_job(job, preview_interval=interval):
        match event.WhichOneof("event"):
            case "job":
                session.output.result(event, _line(event.job))
            case "progress":
                now = event.progress
                session.output.result(event, f"step {now.step} of {now.steps}  {loss_of(now)}".rstrip())
            case "preview" if previews is not None:
                previews.mkdir(parents=True, exist_ok=True)
                file = previews / f"step-{event.preview.step:05d}.png"
                file.write_bytes(event.preview.png)
                session.output.result({"preview": str(file), "step": event.preview.step}, str(file))


@jobs.command()
@click.argument("job")
@connected
def cancel(session: Session, *, job: str) -> None:
    """Cancel JOB, which is queued or running."""
    ended = session.client.cancel_job(job)
    session.output.result(ended, _line(ended))


@jobs.command()
@click.argument("job")
@connected
def retry(session: Session, *, job: str) -> None:
    """Queue JOB, which has failed or was cancelled, again."""
    queued = session.client.retry_job(job)
    session.output.result(queued, _line(queued))


def _line(job: resources_pb2.Job) -> str:
    if job.evaluates:
        version = VersionName.parse(job.evaluates)
        what = f"evaluate <{version.concept}@{version.version}>"
    else:
        what = f"learn <{ConceptName.parse(job.concept).concept}>"
    end = job.error.message if job.HasField("error") else job.evaluation or job.version
    return f"{job.name}  {what}  {_State.Name(job.state)[6:].lower()}  {end}".rstrip()
