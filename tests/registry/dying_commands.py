"""`python -m tests.registry.dying_commands FOLDER`: what an operator runs, killed at its k-th write, for every k.

A line of JSON on standard output for each death: of which command, at which write and on which side of it, what an
inspection of what it was writing said then, how the same command ended that was run again, and once more after the
place was emptied if it was refused, and what an inspection said at the end.
"""

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import structlog

from registry import app as server
from standalone import fold, fsck, stores
from standalone.backup import backup, restore
from storage import backup as copies
from storage.inspect import shard as shards
from storage.ledger import maintenance as maintenance
from storage.ledger import segments, writer
from storage.ledger.snapshots import snapshots, superseded
from storage.objects.base import ObjectStore
from storage.objects.disk import DiskStore
from tests.registry.dying import Dying, forked, live
from tests.storage.counters import Counters, fill, open_ledger

# Instead of 1,024: as many entries as a segment's writer reads at once.
_RUN = 32
_ENTRIES = 3 * _RUN + 1

Open = Callable[[Path], ObjectStore]
Work = Callable[[Path, Open], None]


@dataclass(frozen=True, kw_only=True)
class _Case:
    """`begin` makes what there is before; `work` writes into the folder `target`, and into nothing else."""

    name: str
    begin: Callable[[Path], None]
    work: Work
    target: str


def _use(opened: Open) -> None:
    """What commands open their folders with, from now on."""
    stores.open_store = lambda address, s3=None: opened(Path(address))  # type: ignore[attr-defined]


def _command(command: click.Command, *arguments: str) -> Work:
    """`command`, its arguments being folders."""

    def work(root: Path, opened: Open) -> None:
        _use(opened)
        with redirect_stdout(sys.stderr):
            command.main([str(root / argument) for argument in arguments], standalone_mode=False)

    return work


def _wait(store: ObjectStore, last: int) -> None:
    while (found := snapshots(store, 1))[-1:] == [] or found[-1].entry < last or superseded(found):
        time.sleep(0.01)


def _keep_up(root: Path, opened: Open) -> None:
    """A replica that finds segments and a checkpoint to write."""
    store = opened(root / "store")

    async def work() -> None:
        ledger = open_ledger(store, root / "views")
        last = (await ledger.revision(1)).entry
        await asyncio.to_thread(_wait, store, last)
        await ledger.close()

    asyncio.run(work())
    shutil.rmtree(root / "views")


def _live(root: Path, requests: int | None = None) -> None:
    """In a process of its own: one that has used grpc is not forked."""
    assert forked(lambda: asyncio.run(live(root, DiskStore(root), requests))) == 0


def _links(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=os.link, ignore=shutil.ignore_patterns(".*"))


def _cases(folder: Path) -> Iterator[_Case]:
    older, newer = folder / "older", folder / "newer"
    _live(folder / "young", 3)
    _links(folder / "young", folder / "store")
    _command(backup, "store", "older")(folder, DiskStore)
    _live(folder / "store")
    _links(older, newer)
    _command(backup, "store", "newer")(folder, DiskStore)

    def begin(root: Path) -> None:
        _links(folder / "store", root / "store")

    def begin_again(root: Path) -> None:
        begin(root)
        _links(older, root / "backup")

    work = _command(backup, "store", "backup")
    yield _Case(name="backup", begin=begin, work=work, target="backup")
    yield _Case(name="backup again", begin=begin_again, work=work, target="backup")
    yield _Case(
        name="restore",
        begin=lambda root: _links(newer, root / "backup"),
        work=_command(restore, "backup", "new"),
        target="new",
    )
    yield _Case(name="fold", begin=begin, work=_command(fold.folded, "store", "new"), target="new")

    # Two checkpoints, of which the one that is due supersedes the first; the segments are lost.
    busy = DiskStore(folder / "busy" / "store")
    for first in range(1, _ENTRIES + 1, _RUN):
        fill(busy, 1, min(_RUN, _ENTRIES + 1 - first), first)
        if first <= _RUN + 1:
            _keep_up(folder / "busy", DiskStore)
    shutil.rmtree(folder / "busy" / "store" / "segments")
    yield _Case(
        name="upkeep",
        begin=lambda root: _links(folder / "busy" / "store", root / "store"),
        work=_keep_up,
        target="store",
    )


def _said(root: Path, case: _Case) -> Any:
    """What an inspection finds; of a backup, one of what is restored from it."""
    try:
        place = root / case.target
        if case.target == "backup":
            place = root / "restored"
            shutil.rmtree(place, ignore_errors=True)
            _command(restore, case.target, "restored")(root, DiskStore)
        _use(DiskStore)
        report = fsck.inspect(str(place))
    except click.ClickException as error:
        return error.message
    findings = [[found.severity, found.object, found.why] for found in report.findings]
    return {"findings": findings, "counts": report.counts}


def _again(root: Path, case: _Case) -> str:
    """Runs the command once more in a process of its own; what it was refused with, if it was."""
    told = root / "told"

    def work() -> None:
        try:
            case.work(root, DiskStore)
        except click.ClickException as error:
            told.write_text(error.message)

    status = forked(work)
    assert status == 0, status
    return told.read_text() if told.exists() else ""


def _death(root: Path, case: _Case, at: int, *, after: bool) -> dict[str, Any] | None:
    """What came of a death; None when there is no such write."""
    root.mkdir()
    case.begin(root)
    target = root / case.target

    def opened(path: Path) -> ObjectStore:
        return Dying(path, at, after=after) if path == target else DiskStore(path)

    status = forked(lambda: case.work(root, opened))
    if status == 0:
        return None
    found = {"command": case.name, "at": at, "after": after, "status": status, "left": _said(root, case)}
    found["again"] = _again(root, case)
    if found["again"]:
        shutil.rmtree(target)
        (root / "told").unlink()
        found["emptied"] = _again(root, case)
    return found | {"then": _said(root, case)}


def _deaths(folder: Path, case: _Case) -> Iterator[dict[str, Any]]:
    """Before each write, which is after the one before it; and after the last."""
    root, at = folder / "death", 1
    while found := _death(root, case, at, after=False):
        shutil.rmtree(root)
        yield found
        at += 1
    shutil.rmtree(root)
    last = _death(root, case, at - 1, after=True)
    shutil.rmtree(root)
    assert last is not None
    yield last


def main(folder: Path) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    for module in (segments, maintenance, writer, shards, copies, fold):
        module.RUN = _RUN  # type: ignore[attr-defined]
    # The fewer there are, the less is written that is about nothing.
    server.SHARDS = 2  # type: ignore[attr-defined]
    known = {**stores.state_machines(), Counters.name: Counters()}
    fsck.state_machines = lambda: known  # type: ignore[attr-defined]
    # No server uses these places, so none has to find out.
    copies.IDENTITY_FRESH_S = 0.0  # type: ignore[attr-defined]
    for case in _cases(folder):
        for death in _deaths(folder, case):
            sys.stdout.write(json.dumps(death) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
