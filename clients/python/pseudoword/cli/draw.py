"""`pseudoword draw`: draws a prompt."""

import io
from datetime import timedelta
from pathlib import Path

import click
from google.protobuf.json_format import MessageToDict
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from pseudoword.cli.connection import Session, connected
from pseudoword.cli.output import write_file
from pseudoword.cli.settings import drawing
from pseudoword.generation.v1 import generation_pb2, resources_pb2
from pseudoword.picture import Picture, pictures
from pseudoword.sheet import Tile, contact_sheet

_FORMATS = {
    ".png": resources_pb2.PICTURE_FORMAT_PNG,
    ".jpg": resources_pb2.PICTURE_FORMAT_JPEG,
    ".jpeg": resources_pb2.PICTURE_FORMAT_JPEG,
    ".webp": resources_pb2.PICTURE_FORMAT_WEBP,
}


@click.command()
@click.argument("prompt")
@click.option(
    "-o",
    "--output",
    "path",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="PNG, JPEG or WebP file to write.",
)
@click.option("--count", type=click.IntRange(1), default=1, help="Number of pictures, with seeds SEED, SEED + 1, ...")
@click.option(
    "--from",
    "start",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Initial picture (image to image); the result has its size.",
)
@click.option(
    "--strength",
    type=click.FloatRange(0, 1, min_open=True),
    help="With --from: fraction of the schedule that is rerun; the larger, the less of the initial picture remains.",
)
@click.option(
    "--mask",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="With --from: picture of the same shape, white where it is redrawn (inpainting).",
)
@click.option("--weights", is_flag=True, help="Parse (text:1.3), (text:-0.5) and [text] in the prompts as weights.")
@click.option("--clip-skip", type=click.IntRange(0), default=0, help="Number of last text encoder layers to skip.")
@click.option(
    "--fast", is_flag=True, help="Share forward passes with other requests; pixels may differ by one level of 255."
)
@drawing
@connected
def draw(
    session: Session,
    *,
    settings: resources_pb2.PictureSettings,
    prompt: str,
    path: Path,
    count: int,
    start: Path | None,
    strength: float | None,
    mask: Path | None,
    weights: bool,
    clip_skip: int,
    fast: bool,
) -> None:
    """Draw PROMPT, in which <concept> is a learned word.

    Each file contains a record of how the picture was made. The same command writes the same file, as long as its words
    mean the same versions. With --count 4 -o rex.png the pictures are rex-1.png to rex-4.png, and rex.png is a contact
    sheet of them.
    """
    if path.suffix.lower() not in _FORMATS:
        raise click.BadParameter(
            f"the ending {path.suffix!r} is not supported; use .png, .jpg or .webp", param_hint="-o"
        )
    if not path.parent.is_dir():
        raise click.BadParameter(f"there is no folder {path.parent}; create it first", param_hint="-o")
    more = resources_pb2.PictureSettings(
        prompt=prompt,
        start_picture=start.read_bytes() if start else b"",
        strength=strength,
        mask=mask.read_bytes() if mask else b"",
        prompt_weights=weights,
        clip_skip=clip_skip,
        exact=not fast,
    )
    settings.MergeFrom(more)
    drawn = _generate(session, settings, count, _FORMATS[path.suffix.lower()])
    paths = [path] if count == 1 else [path.with_stem(f"{path.stem}-{picture.index + 1}") for picture in drawn]
    for picture, file in zip(drawn, paths, strict=True):
        write_file(file, picture.data)
        session.output.result(
            {"file": str(file), **MessageToDict(picture.info, preserving_proto_field_name=True)}, str(file)
        )
    if count > 1:
        tiles = [
            Tile(image=Image.open(io.BytesIO(picture.data)), caption=f"seed {picture.info.record.settings.seed}")
            for picture in drawn
        ]
        buffer = io.BytesIO()
        columns = min(5, len(tiles))
        rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
        contact_sheet(rows, title=prompt).save(
            buffer, {".png": "PNG", ".webp": "WEBP"}.get(path.suffix.lower(), "JPEG")
        )
        write_file(path, buffer.getvalue())
        session.output.result({"contact_sheet": str(path)}, str(path))


def _generate(
    session: Session,
    settings: resources_pb2.PictureSettings,
    count: int,
    format: "resources_pb2.PictureFormat.ValueType",
) -> list[Picture]:
    events: list[generation_pb2.GenerateResponse] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=session.output.progress, transient=True) as bars:
        bar = bars.add_task("queued", total=None)
        for event in session.client.generate(settings, count=count, format=format, max_staleness=timedelta(0)):
            events.append(event)
            if event.WhichOneof("event") == "progress":
                bars.update(bar, description="drawing", completed=event.progress.call, total=event.progress.calls)
    return pictures(events)
