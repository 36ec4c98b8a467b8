"""The options that all commands share: addresses, TLS, token, tenant, output format."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pseudoword.channel import Endpoints
from pseudoword.cli.output import Output
from pseudoword.client import Client
from pseudoword.errors import PseudowordError
from pseudoword.names import InvalidName

_DEFAULTS = Endpoints()


@dataclass(frozen=True, kw_only=True)
class Session:
    """The client and the output of a command."""

    client: Client
    output: Output


def _shared_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line."),
        click.option(
            "--ca",
            envvar="PSEUDOWORD_CA",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="PEM file of certificate authorities; switches TLS on.  [env: PSEUDOWORD_CA]",
        ),
        click.option("--token", envvar="PSEUDOWORD_TOKEN", help="Bearer token.  [env: PSEUDOWORD_TOKEN]"),
        click.option(
            "--tenant",
            envvar="PSEUDOWORD_TENANT",
            default="default",
            help="Tenant of words and jobs.  [env: PSEUDOWORD_TENANT]",
        ),
        *(
            click.option(
                f"--{server}",
                envvar=f"PSEUDOWORD_{server.upper()}",
                default=getattr(_DEFAULTS, server),
                metavar="HOST:PORT",
                help=f"Address of the {server} server.  [env: PSEUDOWORD_{server.upper()}]",
            )
            for server in ("generation", "trainer", "registry")
        ),
    ):
        function = option(function)
    return function


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the shared options and a Session as its first argument. Turns errors into exit status 1."""

    @functools.wraps(command)
    def run(
        *,
        registry: str,
        trainer: str,
        generation: str,
        tenant: str,
        token: str | None,
        ca: Path | None,
        as_json: bool,
        **arguments: Any,
    ) -> None:
        output = Output(as_json=as_json)
        endpoints = Endpoints(registry=registry, trainer=trainer, generation=generation, token=token, ca=ca)
        try:
            with Client(endpoints, tenant=tenant) as client:
                command(Session(client=client, output=output), **arguments)
        except PseudowordError as error:
            output.failure(error)
            raise SystemExit(1) from None
        except (InvalidName, ValueError) as error:
            raise click.ClickException(str(error)) from None

    return _shared_options(run)
