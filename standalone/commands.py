"""`pseudoword up` and `pseudoword demo`."""

import os
import signal
import time
from pathlib import Path
from types import FrameType

import click
from pseudoword.errors import PseudowordError
from rich.console import Console

from standalone.servers import ServerDied, Servers

_CHECK_EVERY_S = 0.5


def _data_folder() -> Path:
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "pseudoword"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=_data_folder,
    show_default="~/.local/share/pseudoword",
    help="Folder for words, jobs and logs; created if it is missing.",
)
@click.option(
    "--model",
    metavar="PATH_OR_ID",
    help="Stable Diffusion 1.x or 2.x checkpoint in diffusers' layout.  [default: the bundled miniature]",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65533),
    default=7361,
    show_default=True,
    help="The registry's port; trainer and generation use the next two. 0: any free ports.",
)
def up(data: Path, model: str | None, port: int) -> None:
    """Start registry, trainer and generation on this machine, until Ctrl-C.

    The servers listen on loopback only and need no other service: words are stored in a folder. `learn`, `draw` and all
    other commands find them at their default addresses.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console(stderr=True, highlight=False)
    try:
        with Servers(data.resolve(), model=model, port=port) as servers:
            console.print("pseudoword is up; Ctrl-C stops it.")
            endpoints = servers.endpoints
            for name in ("registry", "trainer", "generation"):
                click.echo(f"{name:<11} {getattr(endpoints, name)}   metrics http://{servers.metrics[name]}/metrics")
            console.print(f"data in {data}, logs in {data / 'logs'}")
            while True:
                servers.check()
                time.sleep(_CHECK_EVERY_S)
    except KeyboardInterrupt:
        console.print("stopped")
    except ServerDied as died:
        raise click.ClickException(str(died)) from None


@click.command()
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Folder for the pictures, the contact sheet and the loss curve.",
)
def demo(folder: Path) -> None:
    """Learn a word from four pictures and draw it in six prompts.

    Starts the three servers, learns <rex> from pictures of a toy, publishes it, draws it, writes a contact sheet and
    the loss curve, and stops the servers.
    """
    from standalone.demo import run  # imports matplotlib, which slows the other commands down

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        run(folder, Console(stderr=True, highlight=False))
    except PseudowordError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        click.echo("interrupted; all servers are stopped", err=True)
        raise SystemExit(130) from None
    except ServerDied as died:
        raise click.ClickException(str(died)) from None
