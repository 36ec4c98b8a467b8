"""`pseudoword fsck`: inspects a whole store."""

import json
import sqlite3
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import click

from registry.catalogue.versioned_rows import FOREVER
from standalone.stores import HELP, opened, state_machines
from storage.inspect.report import Report, Severity, Vectors
from storage.inspect.store import Inspection

_SHOWN = 20  # number of garbage findings and of notes that are listed without --all


@click.command(epilog=HELP)
@click.argument("store")
@click.option(
    "--views",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    help="Folder of a server's views to compare as well; views in the store's own folder are found without it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to standard output.")
@click.option("--all", "everything", is_flag=True, help="List all garbage and notes, not only the first 20 of each.")
def fsck(store: str, views: tuple[Path, ...], as_json: bool, everything: bool) -> None:
    """Read a whole store and report damaged, missing and unneeded objects.

    Replays the log from its beginning and compares the derived objects with it: segments, snapshots and servers' views.
    Changes nothing; servers may keep running.

    Exit status: 0 the store is sound (it may contain garbage), 1 it is not, 2 it could not be read.
    """
    try:
        report = inspect(store, views)
    except click.ClickException as error:
        error.show()
        raise SystemExit(2) from None
    if as_json:
        findings = [asdict(found) for found in report.findings]
        click.echo(json.dumps(asdict(report) | {"findings": findings, "sound": report.sound}, indent=1))
    else:
        _show(report, everything)
    raise SystemExit(0 if report.sound else 1)


def inspect(address: str, views: tuple[Path, ...] = ()) -> Report:
    """The report about the store at `address`. Raises click.ClickException when it cannot be read."""
    with opened(address, existing=True) as store, tempfile.TemporaryDirectory(prefix="pseudoword-fsck-") as folder:
        return Inspection(store, state_machines(), Path(folder), vectors=_vectors, views=views).run()


def _vectors(db: sqlite3.Connection) -> Mapping[str, Vectors]:
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'versions'").fetchone():
        return {}
    rows = db.execute(f"SELECT blob, size, tensors_digest FROM versions WHERE gone = {FOREVER}")
    return {row["blob"]: Vectors(size=row["size"], tensors_digest=row["tensors_digest"]) for row in rows}


def _show(report: Report, everything: bool) -> None:
    click.echo(f"{report.store}: {report.book}, store {report.store_id}, created {report.created}")
    click.echo(", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in report.counts.items()) or "empty")
    for severity in Severity:
        found = [finding for finding in report.findings if finding.severity is severity]
        show_all = severity in (Severity.DAMAGE, Severity.DERIVED) or everything
        for finding in found if show_all else found[:_SHOWN]:
            click.echo(f"{severity}: {finding.object}: {finding.why}")
        if len(found) > _SHOWN and not show_all:
            click.echo(f"{severity}: {len(found) - _SHOWN} more; --all lists them")
    click.echo("sound" if report.sound else "NOT SOUND")
