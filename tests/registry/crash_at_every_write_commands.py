"""`python -m tests.registry.crash_at_every_write_commands FOLDER`: kills an operator's commands at their k-th write.

For every k. Prints a line of JSON for each crash: the command, the write, whether the crash came before or after it,
what an inspection of the target found then, the outcome of the same command run again (and once more on an empty target
if that was refused), and what an inspection found at the end.
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
from tests.registry.crash_at_every_write import CrashingStore, forked, run_registry
from tests.storage.counters import Counters, fill, open_ledger

# Entries that the writer of a segment reads together; 1,024 outside tests.
_RUN = 32
_ENTRIES = 3 * _RUN + 1

Open = Callable[[Path], ObjectStore]
Work = Callable[[Path, Open], None]


@dataclass(frozen=True, kw_only=True)
class _Case:
    """`begin` prepares the folders; `work` writes into the folder `target` only."""

    name: str
    begin: Callable[[Path], None]
    work: Work
    target: str


def _use(opened: Open) -> None:
    """Makes the commands of this process open their folders with `opened`."""
    stores.open_store = lambda address, s3=None: opened(Path(address))  # type: ignore[attr-defined]


def _command(command: click.Command, *arguments: str) -> Work:
    """Runs `command` with folders below the root as its arguments."""

    def work(root: Path, opened: Open) -> None:
        _use(opened)
        with redirect_stdout(sys.stderr):
            command.main([str(root / argument) for argument in arguments], standalone_mode=False)

    return work


def _wait(store: ObjectStore, last: int) -> None:
    while (found := snapshots(store, 1))[-1:] == [] or found[-1].entry < last or superseded(found):
        time.sleep(0.01)


def _run_maintenance(root: Path, opened: Open) -> None:
    """Runs a replica until it has written the segments and the checkpoint that are due."""
    store = opened(root / "store")

    async def work() -> None:
        ledger = open_ledger(store, root / "views")
        last = (await ledger.revision(1)).entry
        await asyncio.to_thread(_wait, store, last)
        await ledger.close()

    asyncio.run(work())
    shutil.rmtree(root / "views")


def _fill(root: Path, requests: int | None = None) -> None:
    """In a forked process: a process that has used grpc cannot fork."""
    assert forked(lambda: asyncio.run(run_registry(root, DiskStore(root), requests))) == 0


def _link_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=os.link, ignore=shutil.ignore_patterns(".*"))


def _cases(folder: Path) -> Iterator[_Case]:
    older, newer = folder / "older", folder / "newer"
    _fill(folder / "young", 3)
    _link_tree(folder / "young", folder / "store")
    _command(backup, "store", "older")(folder, DiskStore)
    _fill(folder / "store")
    _link_tree(older, newer)
    _command(backup, "store", "newer")(folder, DiskStore)

    def begin(root: Path) -> None:
        _link_tree(folder / "store", root / "store")

    def begin_again(root: Path) -> None:
        begin(root)
        _link_tree(older, root / "backup")

    work = _command(backup, "store", "backup")
    yield _Case(name="backup", begin=begin, work=work, target="backup")
    yield _Case(name="backup again", begin=begin_again, work=work, target="backup")
    yield _Case(
        name="restore",
        begin=lambda root: _link_tree(newer, root / "backup"),
        work=_command(restore, "backup", "new"),
        target="new",
    )
    yield _Case(name="fold", begin=begin, work=_command(fold.folded, "store", "new"), target="new")

    # Two checkpoints and no segment: the checkpoint that is due supersedes the first.
    busy = DiskStore(folder / "busy" / "store")
    for first in range(1, _ENTRIES + 1, _RUN):
        fill(busy, 1, min(_RUN, _ENTRIES + 1 - first), first)
        if first <= _RUN + 1:
            _run_maintenance(folder / "busy", DiskStore)
    shutil.rmtree(folder / "busy" / "store" / "segments")
    yield _Case(
        name="upkeep",
        begin=lambda root: _link_tree(folder / "busy" / "store", root / "store"),
        work=_run_maintenance,
        target="store",
    )


def _inspect(root: Path, case: _Case) -> Any:
    """What an inspection of the target finds; a backup is restored first, and the restored store inspected."""
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
    """Runs the command again in a forked process. The error message, or "" if the command succeeds."""
    message = root / "message"

    def work() -> None:
        try:
            case.work(root, DiskStore)
        except click.ClickException as error:
            message.write_text(error.message)

    status = forked(work)
    assert status == 0, status
    return message.read_text() if message.exists() else ""


def _crash(root: Path, case: _Case, at: int, *, after: bool) -> dict[str, Any] | None:
    """What follows a crash at write `at`; None if there are fewer writes."""
    root.mkdir()
    case.begin(root)
    target = root / case.target

    def opened(path: Path) -> ObjectStore:
        return CrashingStore(path, at, after=after) if path == target else DiskStore(path)

    status = forked(lambda: case.work(root, opened))
    if status == 0:
        return None
    found = {"command": case.name, "at": at, "after": after, "status": status, "left": _inspect(root, case)}
    found["again"] = _again(root, case)
    if found["again"]:
        shutil.rmtree(target)
        (root / "message").unlink()
        found["emptied"] = _again(root, case)
    return found | {"then": _inspect(root, case)}


def _crashes(folder: Path, case: _Case) -> Iterator[dict[str, Any]]:
    """A crash before each write (which is also after the write before it), and a crash after the last write."""
    root, at = folder / "crash", 1
    while found := _crash(root, case, at, after=False):
        shutil.rmtree(root)
        yield found
        at += 1
    shutil.rmtree(root)
    last = _crash(root, case, at - 1, after=True)
    shutil.rmtree(root)
    assert last is not None
    yield last


def main(folder: Path) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    for module in (segments, maintenance, writer, shards, copies, fold):
        module.RUN = _RUN  # type: ignore[attr-defined]
    # Fewer shards, fewer writes for empty shards.
    server.SHARDS = 2  # type: ignore[attr-defined]
    known = {**stores.state_machines(), Counters.name: Counters()}
    fsck.state_machines = lambda: known  # type: ignore[attr-defined]
    # No server uses these stores, so there is none to wait for.
    copies.IDENTITY_FRESH_S = 0.0  # type: ignore[attr-defined]
    for case in _cases(folder):
        for crash in _crashes(folder, case):
            sys.stdout.write(json.dumps(crash) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
