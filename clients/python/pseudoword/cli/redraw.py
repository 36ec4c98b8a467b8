"""`pseudoword redraw`: draws a picture again from the record in its file."""

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from google.protobuf.json_format import Parse, ParseError
from PIL import Image, ImageChops, UnidentifiedImageError

from pseudoword.cli.connection import Session, connected
from pseudoword.cli.output import write_file
from pseudoword.generation.v1 import resources_pb2
from pseudoword.names import VersionName
from pseudoword.picture import pictures

_RECORD_KEY = "pseudoword"
_WORD = re.compile(r"\\<|<([^<>]+)>")
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@click.argument("path", metavar="FILE.png", type=_FILE)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File for the new picture.")
@click.option("--from", "start", type=_FILE, help="Initial picture, if it was drawn with one.")
@click.option("--mask", type=_FILE, help="Mask, if it was drawn with one.")
@connected
def redraw(session: Session, *, path: Path, output: Path | None, start: Path | None, mask: Path | None) -> None:
    """Draw FILE.png again from the record inside it, and compare the two pictures.

    The words are the versions in the record, even if their aliases have moved since. Exit status 0: equal to the last
    bit. Exit status 1: different; the differences of the servers are printed.
    """
    old, record = _read(path)
    settings = record.settings
    versions = {use.word: use.version for use in record.words}
    settings.prompt = _pinned(settings.prompt, versions)
    settings.negative_prompt = _pinned(settings.negative_prompt, versions)
    settings.exact = True
    settings.start_picture = _given(start, record.start_picture_digest, "--from")
    settings.mask = _given(mask, record.mask_digest, "--mask")
    (new,) = pictures(session.client.generate(settings))
    if output is not None:
        write_file(output, new.data)
    greatest = _difference(old, new.data)
    changed = {} if greatest == 0 else _changes(record, new.info.record)
    lines = ["equal" if greatest == 0 else f"different: by up to {greatest} of 255 levels"]
    lines += [f"  {field}: {before} then, {now} now" for field, (before, now) in changed.items()]
    shown: Mapping[str, Any] = {"file": str(path), "equal": greatest == 0, "difference": greatest, "changed": changed}
    session.output.result(shown, "\n".join(lines))
    if greatest:
        raise SystemExit(1)


def _read(path: Path) -> tuple[Image.Image, resources_pb2.PictureRecord]:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            text = getattr(image, "text", {}).get(_RECORD_KEY)
            old = image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError):
        raise click.ClickException(f"{path} is not a readable PNG; only a PNG can be compared bit by bit") from None
    if text is None:
        raise click.ClickException(f"{path} has no record of pseudoword; give a file that pseudoword has drawn")
    try:
        return old, Parse(text, resources_pb2.PictureRecord(), ignore_unknown_fields=True)
    except ParseError:
        raise click.ClickException(f"the record in {path} is damaged") from None


def _pinned(prompt: str, versions: Mapping[str, str]) -> str:
    def pin(found: re.Match[str]) -> str:
        if found[1] not in versions:
            return found[0]
        version = VersionName.parse(versions[found[1]])
        return f"<{version.tenant}/{version.concept}@{version.version}>"

    return _WORD.sub(pin, prompt)


def _given(path: Path | None, digest: str, option: str) -> bytes:
    data = path.read_bytes() if path is not None else b""
    if (hashlib.sha256(data).hexdigest() if data else "") != digest:
        wanted = f"the file with the sha256 {digest}" if digest else "no file"
        raise click.BadParameter(f"the picture was drawn with {wanted}", param_hint=option)
    return data


def _difference(old: Image.Image, data: bytes) -> int:
    with Image.open(io.BytesIO(data)) as image:
        if image.size != old.size:
            return 255
        bands = ImageChops.difference(old, image.convert("RGB")).getextrema()
    return max(int(high) for _, high in bands)  # type: ignore[misc]


def _changes(then: resources_pb2.PictureRecord, now: resources_pb2.PictureRecord) -> dict[str, tuple[str, str]]:
    """The differences of the servers that made the two pictures: field to (then, now)."""
    fields = {name: (getattr(then, name), getattr(now, name)) for name in ("weights_digest", "device", "dtype")}
    names = sorted({*then.software, *now.software})
    fields |= {name: (then.software.get(name, "-"), now.software.get(name, "-")) for name in names}
    return {name: pair for name, pair in fields.items() if pair[0] != pair[1]}
