"""`pseudoword alias`: names that point to versions, with a history of their moves."""

from datetime import UTC
from typing import Any

import click

from pseudoword.cli.connection import Session, connected
from pseudoword.names import VersionName

_reason = click.option(
    "--reason", default="", show_default=False, metavar="TEXT", help="Reason, kept in the alias's history."
)


@click.group()
def alias() -> None:
    """Point aliases to versions.

    The alias `production` is the meaning of <concept>; if it is not set, <concept> means the latest version. Any other
    alias is used as <concept@alias>.
    """


@alias.command("set")
@click.argument("concept")
@click.argument("alias_name", metavar="ALIAS")
@click.argument("version", type=click.IntRange(1))
@click.option(
    "--etag", default="", show_default=False, help="Only if the alias has not changed since it was read with this etag."
)
@_reason
@connected
def set_(session: Session, *, concept: str, alias_name: str, version: int, etag: str, reason: str) -> None:
    """Point ALIAS of CONCEPT to VERSION."""
    moved = session.client.set_alias(concept, alias_name, version, etag=etag, reason=reason)
    session.output.result(moved, f"<{concept}@{alias_name}> is {moved.version}")


@alias.command()
@click.argument("concept")
@click.argument("alias_name", metavar="ALIAS")
@_reason
@connected
def rollback(session: Session, *, concept: str, alias_name: str, reason: str) -> None:
    """Point ALIAS back to the version before its last move."""
    moved = session.client.rollback_alias(concept, alias_name, reason=reason)
    session.output.result(moved, f"<{concept}@{alias_name}> is {moved.version} again")


@alias.command()
@click.argument("concept")
@click.argument("alias_name", metavar="ALIAS")
@_reason
@connected
def delete(session: Session, *, concept: str, alias_name: str, reason: str) -> None:
    """Delete ALIAS; its history is kept."""
    session.client.delete_alias(concept, alias_name, reason=reason)
    name = str(session.client.alias(concept, alias_name))
    session.output.result({"deleted": name}, f"{name} was deleted")


@alias.command()
@click.argument("concept")
@click.argument("alias_name", metavar="ALIAS")
@connected
def history(session: Session, *, concept: str, alias_name: str) -> None:
    """Print the moves of ALIAS, newest first, with time, actor and reason."""
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
