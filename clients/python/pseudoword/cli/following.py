"""Follows a job on the terminal until it has ended, with a progress bar; Ctrl-C cancels the job."""

from contextlib import suppress

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pseudoword.cli.connection import Session
from pseudoword.errors import PseudowordError
from pseudoword.trainer.v1 import resources_pb2

_State = resources_pb2.Job.State


def follow(session: Session, job: resources_pb2.Job, word: str) -> resources_pb2.Job:
    """Follow `job` and return it as it ends. With --json every event is printed. Ctrl-C ends the command with status
    130."""
    client, output = session.client, session.output
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=output.progress, transient=True) as bars:
            bar = bars.add_task(f"{word} queued", total=None, loss="", markup=False)
            for event in client.watch_job(job.name):
                if output.as_json:
                    output.result(event)
                if event.WhichOneof("event") == "job":
                    if event.job.first_version and not job.first_version:
                        bars.console.print(
                            f"{event.job.first_version}  (first version; training continues)", markup=False
                        )
                    job = event.job
                    bars.update(bar, description=f"{word} {_State.Name(job.state)[6:].lower()}")
                elif event.WhichOneof("event") == "progress":
                    now = event.progress
                    bars.update(bar, completed=now.step, total=now.steps, loss=loss_of(now))
    except KeyboardInterrupt:
        # A job that is already publishing cannot be cancelled. The word is then published, which is not an error here.
        with suppress(PseudowordError):
            job = client.cancel_job(job.name)
        click.echo(f"{job.name} was cancelled", err=True)
        raise SystemExit(130) from None
    return job


def loss_of(progress: resources_pb2.Progress) -> str:
    """The loss as text; empty for an evaluation, which has no loss while it runs."""
    return f"loss {progress.smoothed_loss:.4f}" if progress.smoothed_loss else ""
