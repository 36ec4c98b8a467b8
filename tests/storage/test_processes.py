"""Several writer processes on one store, some of them killed."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from storage.ledger.ledger import Ledger
from tests.conftest import ROOT, Place
from tests.storage.counters import Add, add, everything, open_ledger

pytestmark = pytest.mark.process


def _start(place: Place, folder: Path, prefix: str, count: int) -> "subprocess.Popen[str]":
    access = place.access
    settings = {
        "address": place.address,
        "access": access
        and {
            "endpoint": access.endpoint,
            "access_key": access.access_key,
            "secret_key": access.secret_key,
            "secure": False,
        },
        "folder": str(folder),
        "prefix": prefix,
        "count": count,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.storage.counters", json.dumps(settings)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


async def _history(ledger: Ledger[Add]) -> list[tuple[str, str]]:
    """(request id, revision) of all changes."""
    found: list[tuple[str, str]] = []
    after = ledger.beginning(1)
    while True:
        changes, after = await ledger.changes(1, after)
        if not changes:
            return found
        found += [(change.request_id, str(change.revision)) for change in changes]


async def test_repeated_requests_of_several_processes_have_one_effect(place: Place, tmp_path: Path) -> None:
    # Two writers send the same requests.
    prefixes = ["a", "b", "b", "c"]
    writers = [_start(place, tmp_path / f"view-{n}", prefix, 40) for n, prefix in enumerate(prefixes)]
    answers: dict[str, set[str]] = {}
    for writer in writers:
        out, err = await asyncio.to_thread(writer.communicate)
        assert writer.returncode == 0, err
        lines = [json.loads(line) for line in out.splitlines()]
        assert len(lines) == 40
        for line in lines:
            answers.setdefault(line["id"], set()).add(line["revision"])
    assert len(answers) == 120
    assert all(len(revisions) == 1 for revisions in answers.values()), "two responses to one request"
    store = place.open()
    ledger = open_ledger(store, tmp_path / "view")
    history = await _history(ledger)
    assert dict(history) == {request: next(iter(revisions)) for request, revisions in answers.items()}
    assert len(history) == 120
    await ledger.close()
    store.close()


async def test_log_stays_readable_after_writers_are_killed_at_random_times(place: Place, tmp_path: Path) -> None:
    chance = random.Random(7)
    answered: dict[str, str] = {}
    view = tmp_path / "view"
    for life in range(5):
        writer = _start(place, view, f"life{life}", 10_000)
        assert writer.stdout is not None
        for _ in range(chance.randrange(1, 40)):
            line = json.loads(await asyncio.to_thread(writer.stdout.readline))
            answered[line["id"]] = line["revision"]
        await asyncio.sleep(chance.random() * 0.02)
        writer.send_signal(signal.SIGKILL)
        rest, _ = await asyncio.to_thread(writer.communicate)
        for text in rest.splitlines(keepends=True):
            if text.endswith("\n"):
                line = json.loads(text)
                answered[line["id"]] = line["revision"]
    store = place.open()
    # The view of the killed writers equals a view made from the log alone.
    kept, fresh = open_ledger(store, view), open_ledger(store, tmp_path / "fresh")
    rows = await kept.read(1, everything)
    assert rows == await fresh.read(1, everything)
    history = await _history(fresh)
    committed = dict(history)
    assert len(history) == len(committed)
    assert answered.items() <= committed.items()
    # Requests without a response are repeated under their ids, and have one effect.
    unanswered = sorted(committed.keys() - answered.keys())
    for request_id in [*unanswered, "life0-9999"]:
        result = await add(kept, Add(name="shared", amount=1), request_id)
        assert committed.get(request_id, str(result.revision)) == str(result.revision)
    assert len(await _history(fresh)) == len(history) + 1
    await kept.close()
    await fresh.close()
    store.close()
