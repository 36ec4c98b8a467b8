"""Tests of the two checkers: a sound registry passes, and each fault of a registry is found.

Two registries in this process share a folder; a patch breaks both.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from registry.app import Registry
from registry.catalogue import aliases, concepts
from registry.catalogue_store import CatalogueStore
from storage.ledger.entry import Revision
from storage.ledger.log import Backoff, Log, Metadata
from storage.ledger.view import View
from tests.conftest import Place
from tests.registry.conftest import settings_of
from tests.robustness.clients import Replicas, use
from tests.robustness.history import History, WatchMessage
from tests.robustness.replay import judge, replayed
from tests.robustness.verdict import Verdict, judged, porcupine

Patch = pytest.MonkeyPatch
pytestmark = pytest.mark.process  # a checker is a Go program

# So many operations show each fault, on a slow machine too.
_OPERATIONS = 1_000
_LONG_AGO = timedelta(hours=1)


def _stop_when_used(history: History, stop: asyncio.Event) -> None:
    if len(history.operations) >= _OPERATIONS:
        stop.set()
    else:
        asyncio.get_running_loop().call_later(0.05, _stop_when_used, history, stop)


async def _run(folder: Path) -> tuple[History, Verdict]:
    """The history of two registries on one folder, and the verdict of the checkers."""
    place = Place(address=str(folder / "store"), access=None)
    history, stop = History(seed=7), asyncio.Event()
    async with AsyncExitStack() as stack:
        registries = [await stack.enter_async_context(Registry(settings_of(place))) for _ in range(2)]
        replicas = Replicas([registry.server.address for registry in registries])
        # Watchers of a broken registry may wait without end.
        _stop_when_used(history, stop)
        async with asyncio.timeout(60):
            await use(replicas, history, stop, clients=6)
        await replicas.close()
    store = place.open()
    verdict = await asyncio.to_thread(judged, history, store, folder / "out")
    store.close()
    return history, verdict


async def test_sound_registry_passes_and_altered_watches_fail(tmp_path: Path) -> None:
    history, verdict = await _run(tmp_path)
    assert verdict.sound, str(verdict)
    assert not list((tmp_path / "out").glob("*.html"))
    store = Place(address=str(tmp_path / "store"), access=None).open()
    metadata = Metadata.read(store)
    log = replayed(Log(store, metadata.store_id, metadata.shards, Backoff()))
    watched = max(history.watches, key=lambda watched: len(watched.messages))
    events = [message for message in watched.messages if message.revision]
    assert len(events) > 20
    at = _followed(events)
    for change, why in _WATCHES:
        watched.messages = list(events)
        change(watched.messages, at)
        assert any(why in found for found in judge(history, log)), change.__name__
    watched.messages = events
    assert judge(history, log) == []


def _stale(patch: Patch) -> None:
    """Strong reads are served from an old view; watches are sound."""
    read, still_at = CatalogueStore.read, CatalogueStore.still_at

    async def old_read(self: CatalogueStore, tenant: str, fn: Any, max_staleness: Any = None) -> Any:
        return await read(self, tenant, fn, _LONG_AGO)

    async def still_old(self: CatalogueStore, revisions: Any, max_staleness: Any = None) -> Any:
        return await still_at(self, revisions, _LONG_AGO)

    patch.setattr(CatalogueStore, "read", old_read)
    patch.setattr(CatalogueStore, "still_at", still_old)


def _no_etags(patch: Patch) -> None:
    """Conditional moves ignore the etag."""
    patch.setattr(aliases, "_check_etag", lambda given, row, name: None)


def _forgetful(patch: Patch) -> None:
    """A repeated request is done again."""
    patch.setattr(View, "remembered", lambda *_: None)


def _undead(patch: Patch) -> None:
    """A deleted word can be resolved."""
    find = concepts.find

    def undeleted(db: Any, name: Any) -> Any:
        row = find(db, name)
        return row and row | {"state": concepts.ACTIVE}

    patch.setattr(concepts, "find", undeleted)


@pytest.mark.parametrize(
    ("broken", "porcupine_finds", "replay_finds"),
    [
        (_stale, True, ["older than an answer given before"]),
        (_no_etags, True, ["the etag was"]),
        (_forgetful, False, ["one request is in several entries", "asked again, it was answered otherwise"]),
        (_undead, True, ["the state at its revision was"]),
    ],
    ids=["stale", "no-etags", "forgetful", "undead"],
)
async def test_checkers_find_each_fault_of_a_registry(
    broken: Callable[[Patch], None],
    porcupine_finds: bool,
    replay_finds: Sequence[str],
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    broken(monkeypatch)
    verdict = (await _run(tmp_path))[1]
    if porcupine_finds:
        assert (verdict.status, "is not linearizable" in verdict.porcupine) == (1, True), str(verdict)
        assert list((tmp_path / "out").glob("tenants-*.html"))
    for why in replay_finds:
        assert any(why in found for found in verdict.replay), str(verdict)


def _followed(events: list[WatchMessage]) -> int:
    """The index of the first message that is followed by a message of its shard. Shards have no order among each other,
    and only a later message of the shard shows that an earlier message is missing."""
    shards = [Revision.parse(message.revision).shard for message in events]
    return next(at for at in range(1, len(shards)) if shards[at] == shards[at + 1])


def _lose(messages: list[WatchMessage], at: int) -> None:
    del messages[at]


def _repeat(messages: list[WatchMessage], at: int) -> None:
    messages.insert(at, messages[at])


def _swap(messages: list[WatchMessage], at: int) -> None:
    messages[at : at + 2] = reversed(messages[at : at + 2])


def _lie(messages: list[WatchMessage], at: int) -> None:
    messages[at] = replace(messages[at], resource=f"{messages[at].resource}0")


def _hurry(messages: list[WatchMessage], at: int) -> None:
    """A bookmark ahead of the reported events."""
    messages.insert(at, WatchMessage(token=messages[at + 1].token))


def _end_early(messages: list[WatchMessage], at: int) -> None:
    del messages[at:]


_WATCHES: list[tuple[Callable[[list[WatchMessage], int], None], str]] = [
    (_lose, "came instead of"),
    (_repeat, "came instead of"),
    (_swap, "came instead of"),
    (_lie, "is not RecordedEvent"),
    (_hurry, "which was not reported"),
    (_end_early, "was never reported"),
]


def test_history_that_cannot_be_checked_in_time_fails(tmp_path: Path) -> None:
    """Many concurrent operations without a known outcome have too many orders."""
    operation = {"client": 0, "concept": "tenants/shop/concepts/rex", "kind": "publish", "call": 1, "end": 2}
    operation |= {"result": "UNKNOWN", "input": {}, "output": {}}
    read = operation | {"kind": "get", "call": 3, "end": 4, "result": "OK"}
    read["output"] = {"state": "active", "count": 99, "version": 0}
    path = tmp_path / "history.json"
    path.write_text(json.dumps({"operations": [*[operation | {"client": n} for n in range(40)], read]}))
    status, output = porcupine(path, tmp_path, "-timeout", "1ms")
    assert (status, "could not be checked in 1ms" in output) == (2, True), output
    assert porcupine(tmp_path / "none.json", tmp_path)[0] == 2
