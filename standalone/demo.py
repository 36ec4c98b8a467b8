"""The demo: learns a word from four pictures and draws it."""

import io
import tempfile
import time
from pathlib import Path

import click
from PIL import Image
from pseudoword.client import Client
from pseudoword.registry.v1.resources_pb2 import Version
from pseudoword.sheet import Tile, contact_sheet
from pseudoword.trainer.v1.resources_pb2 import JobEvent
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from standalone.servers import Servers
from trainer.plots import loss_curve

WORD = "rex"
SENTENCES = {
    "plain": f"a photo of <{WORD}>",
    "beach": f"a photo of <{WORD}> on the beach",
    "sunglasses": f"a photo of <{WORD}> with sunglasses",
    "van-gogh": f"<{WORD}> in the style of van gogh",
    "sketch": f"a sketch of <{WORD}>",
    "two": f"a photo of two <{WORD}> in the snow",
}


def run(folder: Path, console: Console) -> None:
    """Start the servers, learn and draw, write all files into `folder`, and stop the servers. Raises ServerDied,
    PseudowordError."""
    began = time.monotonic()
    pictures = example_pictures()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pseudoword-demo-") as data:
        console.print("starting registry, trainer and generation ...")
        with Servers(Path(data)) as servers, Client(servers.endpoints) as client:
            version = _learn(client, pictures, console)
            client.set_alias(WORD, "production", version.number, reason="demo")
            drawn = _draw(client, folder, console)
    curve = version.provenance.loss_curve
    loss_curve(
        folder / "loss.png", [p.step for p in curve], [p.loss for p in curve], f"learning <{WORD}> from four pictures"
    )
    shown = [Tile(image=Image.open(path), caption=f"picture {path.stem}") for path in pictures]
    contact_sheet([shown, drawn], title=f"above: the pictures that <{WORD}> was learned from; below: drawn").save(
        folder / "sheet.png"
    )
    console.print(f"done in {time.monotonic() - began:.0f} s")
    for file in (folder / "sheet.png", folder / "loss.png"):
        click.echo(file)


def example_pictures() -> list[Path]:
    """The four pictures of a toy: `examples/rex/` of the source tree, or the wheel's copy."""
    for folder in (Path(__file__).parents[1] / "examples" / WORD, Path(__file__).parent / WORD):
        found = sorted(folder.glob("*.png"))
        if found:
            return found
    raise click.ClickException(f"the example pictures are missing in {folder}: reinstall pseudoword-server")


def _learn(client: Client, pictures: list[Path], console: Console) -> Version:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    began = time.monotonic()
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task(f"learning <{WORD}>", total=None, loss="")

        def show(event: JobEvent) -> None:
            if event.WhichOneof("event") == "progress":
                now = event.progress
                bars.update(bar, completed=now.step, total=now.steps, loss=f"loss {now.smoothed_loss:.4f}")

        version = client.learn(WORD, pictures, on_event=show)
    console.print(f"published {version.name} after {time.monotonic() - began:.1f} s")
    return version


def _draw(client: Client, folder: Path, console: Console) -> list[Tile]:
    tiles = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("drawing", total=len(SENTENCES))
        for name, sentence in SENTENCES.items():
            (picture,) = client.draw(sentence)
            picture.save(folder / f"{name}.png")
            tiles.append(Tile(image=Image.open(io.BytesIO(picture.data)), caption=sentence))
            bars.advance(bar)
    return tiles
