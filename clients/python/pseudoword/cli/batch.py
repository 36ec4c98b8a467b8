"""`pseudoword batch`: many pictures, drawn in the background into the server's object store."""

import codecs
from datetime import UTC
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pseudoword.cli.connection import Session, connected
from pseudoword.cli.settings import drawing
from pseudoword.errors import PseudowordError
from pseudoword.generation.v1 import resources_pb2
from pseudoword.names import BatchName

_LAYOUTS = {
    "folder": resources_pb2.Batch.LAYOUT_FOLDER,
    "webdataset": resources_pb2.Batch.LAYOUT_WEBDATASET,
}
_FORMATS = {
    "png": resources_pb2.PICTURE_FORMAT_PNG,
    "jpeg": resources_pb2.PICTURE_FORMAT_JPEG,
    "webp": resources_pb2.PICTURE_FORMAT_WEBP,
}
_State = resources_pb2.Batch.State


@click.group()
def batch() -> None:
    """Draw many pictures into the server's object store.

    For datasets: pictures of a word in many prompts. They are drawn when no other request needs the model, and the
    batch continues after a restart of the server.
    """


@batch.command()
@click.argument("prompt", required=False, default="")
@click.option(
    "--prompts",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Text file with one prompt per line, instead of PROMPT.",
)
@click.option(
    "--fill", "blanks", multiple=True, metavar="NAME=TEXT|TEXT|...", help="Texts for {NAME} in PROMPT; may be repeated."
)
@click.option("--seeds", type=click.IntRange(1), default=1, help="Number of pictures of each prompt.")
@click.option(
    "--layout", type=click.Choice([*_LAYOUTS]), default="folder", help="One object per picture, or tar shards."
)
@click.option("--format", type=click.Choice([*_FORMATS]), default="png", help="File format of the pictures.")
@click.option(
    "--exact",
    is_flag=True,
    help="Do not share forward passes: pictures equal those of `draw` to the last bit, and take longer.",
)
@click.option("--dry-run", is_flag=True, help="Validate the batch, print the number of pictures, and do not start it.")
@drawing
@connected
def create(
    session: Session,
    *,
    settings: resources_pb2.PictureSettings,
    prompt: str,
    file: Path | None,
    blanks: tuple[str, ...],
    seeds: int,
    layout: str,
    format: str,
    exact: bool,
    dry_run: bool,
) -> None:
    """Start a batch: PROMPT, or each line of a file, with each seed.

    \b
    pseudoword batch create "{what} of <rex> in {where}" --fill "what=a photo|a sketch" --fill "where=the snow|a box"
    pseudoword batch create --prompts sentences.txt --seeds 4 --layout webdataset
    """
    if bool(prompt) == (file is not None):
        raise click.UsageError("Give either PROMPT or --prompts.")
    settings.prompt = prompt
    settings.exact = exact
    lines = _text(file).splitlines() if file is not None else []
    asked = resources_pb2.Batch(
        settings=settings,
        prompts=[line.strip() for line in lines if line.strip()],
        blanks=[_blank(text) for text in blanks],
        seeds=seeds,
        format=_FORMATS[format],
        layout=_LAYOUTS[layout],
    )
    made = session.client.create_batch(asked, validate_only=dry_run)
    if dry_run:
        session.output.result(made, f"{made.total} pictures")
    else:
        session.output.result(made, f"{made.name}  ({made.total} pictures; pseudoword batch watch {_short(made.name)})")


@batch.command("list")
@click.option(
    "--filter", default="", show_default=False, metavar="FILTER", help='AIP-160 filter, such as "state = ACTIVE".'
)
@connected
def list_(session: Session, *, filter: str) -> None:
    """List the tenant's batches, newest first."""
    rows: list[tuple[Any, dict[str, str]]] = []
    for one in session.client.batches(filter=filter):
        row = {
            "batch": _short(one.name),
            "state": _state(one),
            "done": f"{one.done} of {one.total}",
            "created": one.create_time.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
            "by": one.creator,
        }
        rows.append((one, row))
    columns = {"batch": "BATCH", "state": "STATE", "done": "PICTURES", "created": "CREATED", "by": "BY"}
    session.output.table(columns, rows, "there are no batches")


@batch.command()
@click.argument("name", metavar="BATCH")
@connected
def show(session: Session, *, name: str) -> None:
    """Print a batch: its state, its progress and the address of its manifest."""
    one = session.client.batch(_name(session, name))
    session.output.result(one, _described(one))


@batch.command()
@click.argument("name", metavar="BATCH")
@connected
def watch(session: Session, *, name: str) -> None:
    """Follow a batch until it has ended. Exit status 1 unless it has succeeded.

    Ctrl-C ends this command, not the batch.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    one = resources_pb2.Batch()
    with Progress(*columns, console=session.output.progress, transient=True) as bars:
        bar = bars.add_task(name, total=None)
        for one in session.client.watch_batch(_name(session, name)):
            if session.output.as_json:
                session.output.result(one)
            bars.update(bar, completed=one.done, total=one.total)
    if not session.output.as_json:
        session.output.result(one, _described(one))
    if one.state == resources_pb2.Batch.STATE_FAILED:
        raise PseudowordError.from_status(one.error)
    if one.state != resources_pb2.Batch.STATE_SUCCEEDED:
        raise SystemExit(1)


@batch.command()
@click.argument("name", metavar="BATCH")
@connected
def cancel(session: Session, *, name: str) -> None:
    """Cancel a batch; finished pictures are kept."""
    over = session.client.cancel_batch(_name(session, name))
    session.output.result(over, _described(over))


def _text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 with the byte order mark by which one knows it. Raises click.UsageError."""
    data = path.read_bytes()
    try:
        return data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{path} is not text in UTF-8 (byte {error.start}): save it as UTF-8.") from error


def _blank(text: str) -> resources_pb2.Batch.Blank:
    name, equals, texts = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not NAME=TEXT|TEXT|...", param_hint="--fill")
    return resources_pb2.Batch.Blank(name=name, texts=texts.split("|"))


def _name(session: Session, name: str) -> str:
    """The resource name of a batch, which may be given by its last segment. Raises InvalidName."""
    return str(BatchName.parse(name if "/" in name else f"{session.client.tenant}/batches/{name}"))


def _short(name: str) -> str:
    return BatchName.parse(name).batch


def _state(one: resources_pb2.Batch) -> str:
    return _State.Name(one.state).removeprefix("STATE_").lower()


def _described(one: resources_pb2.Batch) -> str:
    where = f"  {one.manifest_uri}" if one.manifest_uri else ""
    return f"{one.name}  {_state(one)}, {one.done} of {one.total} pictures{where}"
