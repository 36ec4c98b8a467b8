"""Commands of the command line, run as an operator runs them."""

import asyncio
import json
from typing import Any

import click
from click.testing import CliRunner

from tests.conftest import Place


class Ran:
    """`status` and `output` of a command that has ended."""

    def __init__(self, status: int, output: str, errors: str) -> None:
        self.status = status
        self.output = output
        self.errors = errors

    @property
    def json(self) -> Any:
        return json.loads(self.output)


async def run(command: click.Command, place: Place, *arguments: str) -> Ran:
    """Runs `command` in a thread, with the access to `place` in the environment."""

    def work() -> Ran:
        ended = CliRunner().invoke(command, list(arguments), env=place.environment, catch_exceptions=True)
        if ended.exception is not None and not isinstance(ended.exception, SystemExit):
            raise ended.exception
        return Ran(ended.exit_code, ended.stdout, ended.stderr)

    return await asyncio.to_thread(work)


async def garbage(place: Place) -> list[str]:
    """Runs fsck, which must find the store sound. The names of the garbage."""
    from standalone.fsck import fsck

    ran = await run(fsck, place, place.address, "--json")
    assert ran.status == 0, ran.output
    return [found["object"] for found in ran.json["findings"] if found["severity"] == "garbage"]
