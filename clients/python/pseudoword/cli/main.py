"""The group of commands. Other distributions add commands through the entry points `pseudoword.commands`."""

from importlib.metadata import entry_points

import click

from pseudoword.cli.alias import alias
from pseudoword.cli.batch import batch
from pseudoword.cli.draw import draw
from pseudoword.cli.evaluate import evaluate
from pseudoword.cli.files import export, import_
from pseudoword.cli.jobs import jobs
from pseudoword.cli.learn import learn
from pseudoword.cli.redraw import redraw
from pseudoword.cli.words import show, versions, watch, words


class _Commands(click.Group):
    """A group with its own commands and those of other installed distributions."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, *sorted(point.name for point in entry_points(group="pseudoword.commands"))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        for point in entry_points(group="pseudoword.commands", name=cmd_name):
            command: click.Command = point.load()
            return command
        return None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="pseudoword")
def main() -> None:
    """Learn a word for a visual concept from a few pictures, and draw it in any prompt.

    \b
    pseudoword up                                          start the servers on this machine
    pseudoword learn rex 1.png 2.png 3.png 4.png           learn <rex>
    pseudoword draw "a photo of <rex> on the beach" -o rex.png
    pseudoword versions rex                                list the versions of <rex>
    pseudoword alias set rex production 2                  make <rex> mean version 2

    A word in a prompt is <concept>, <concept@3> (its third version) or <concept@canary> (an alias).
    """


for command in (learn, evaluate, jobs, draw, redraw, words, versions, show, watch, alias, export, import_, batch):
    main.add_command(command)
