"""`pseudoword alias`: names that point at versions and remember where they pointed."""

from datetime import UTC
from typing import Any

import click

from pseudoword.cli.connection import Session, connected
from pseudoword.names import VersionName

_reason = click.option("--reason", default="", metavar="TEXT", help="Why, for the alias's history.")


@click.group()
def alias() -> None:
    """Point names at versions: what a word means without a number.

    `production` is what a bare <concept> means where it is set; any other name is used as <concept@name>.
    """


@alias.command("set")
@click.argument("concept")
@click.argument("alias_name", metavar="ALIAS")
@click.argument("version", type=click.IntRange(1))
@click.option("--etag", default="", help="Only if the alias is still as it was read with this etag.")
@_reason
@connected
def set_(session: Session, *, concept: str, alias_name: str, version: int, etag: str, reason: str) -> None:
    """Point ALIAS of CONCEPT at VERSION."""
    moved = session.client.set_alias(concept, alias_name, version, etag=etag, reason=reason)
    session.output.result(moved, f"<{concept}@{alias_name}> is {moved.version}")


@alias.command()
@click.argument("concept")
@click.argument("alias_name", metavar="ALIAS")
@_reason
@connected
def rollback(session: Session, *, concept: str, alias_name: str, reason: str) -> None:
    """Point ALIAS back at the version before its last move."""
    moved = session.client.rollback_alias(concept, alias_name, reason=reason)
    session.output.result(moved, f"<{concept}@{alias_name}> is {moved.version} again")


@alias.command()
@click.argument("concept")
@click.argument("alias_name", metavar="ALIAS")
@_reason
@connected
def delete(session: Session, *, concept: str, alias_name: str, reason: str) -> None:
    """Remove ALIAS; its history stays."""
    session.client.delete_alias(concept, alias_name, reason=reason)
    name = str(session.client.alias(concept, alias_name))
    session.output.result({"deleted": name}, f"{name} is gone")


@alias.command()
@click.argument("concept")
@click.argument("alias_name", metavar="ALIAS")
@connected
def history(session: Session, *, concept: str, alias_name: str) -> None:
    """Print where ALIAS has pointed, when, and who moved it; newest first."""
    rows: list[tuple[Any, dict[str, str]]] = []
    for change in session.client.alias_changes(concept, alias_name):
        row = {
            "time": change.change_time.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
            "version": _number(change.version),
            "before": _number(change.previous_version),
            "by": change.actor + (f" for {change.on_behalf_of}" if change.on_behalf_of else ""),
            "reason": change.reason or "-",
        }
        rows.append((change, row))
    columns = {"time": "WHEN", "version": "VERSION", "before": "BEFORE", "by": "BY", "reason": "WHY"}
    session.output.table(columns, rows, f"<{concept}@{alias_name}> has never been set")


def _number(version: str) -> str:
    return str(VersionName.parse(version).version) if version else "-"
