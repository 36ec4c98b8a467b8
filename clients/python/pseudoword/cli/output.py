"""The output of commands: text for people, or one JSON object per line for scripts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

from pseudoword.errors import PseudowordError


class Output:
    """Results go to stdout; progress and errors to stderr, so that a pipe gets results only."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(highlight=False, soft_wrap=True)
        self.progress = Console(stderr=True, highlight=False, quiet=as_json)

    def result(self, record: Message | Mapping[str, Any], text: str = "") -> None:
        """Print one result: `record` as a JSON line (protobuf's JSON form, 64-bit integers as text), or `text`."""
        if not self.as_json:
            self.console.print(text, markup=False)
            return
        fields = MessageToDict(record, preserving_proto_field_name=True) if isinstance(record, Message) else record
        click.echo(json.dumps(fields, ensure_ascii=False))

    def table(self, columns: Mapping[str, str], rows: Sequence[tuple[Message, Mapping[str, str]]], empty: str) -> None:
        """Print rows under headings (`columns`: key to heading), or `empty` when there are no rows."""
        if self.as_json:
            for record, _ in rows:
                self.result(record)
            return
        if not rows:
            self.progress.print(empty, markup=False)
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in columns.values():
            table.add_column(heading, overflow="fold")
        for _, row in rows:
            table.add_row(*(row[key] for key in columns))
        self.console.print(table, soft_wrap=False)

    def failure(self, error: PseudowordError) -> None:
        """Print a failed call to stderr."""
        if self.as_json:
            click.echo(json.dumps({"error": _failure_fields(error)}, ensure_ascii=False), err=True)
            return
        click.echo(f"Error: {error}", err=True)
        if error.reason == "" and error.code.name == "UNAVAILABLE":
            click.echo("Is the server running? `pseudoword up` starts all three on this machine.", err=True)


def _failure_fields(error: PseudowordError) -> dict[str, Any]:
    return {
        "code": error.code.name,
        "reason": error.reason,
        "message": error.message,
        "metadata": dict(error.metadata),
        "violations": [{"field": field, "description": text} for field, text in error.violations],
        "retry_after_s": error.retry_after.total_seconds() if error.retry_after else None,
    }


def write_file(path: Path, data: bytes) -> None:
    """Write a file atomically. Raises click.ClickException when it cannot be written."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise click.ClickException(f"cannot write {path}: {error.strerror}") from None
