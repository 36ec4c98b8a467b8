"""`pseudoword backup` and `pseudoword restore`."""

import asyncio
import json
from pathlib import Path
from typing import Any

from pseudoword.registry.v1 import registry_pb2 as rpc

from standalone.backup import backup, restore
from standalone.fsck import fsck
from storage.ledger.log import METADATA_NAME, Metadata
from storage.ledger.segments import segment_name
from tests.conftest import Place
from tests.registry.commands import garbage, run
from tests.registry.conftest import Start
from tests.registry.requests import REX, SHOP, publish, publishing, refused
from tests.registry.test_derived import everything, history


def _second(place: Place, tmp_path: Path) -> Place:
    """An empty store of the same kind."""
    address = f"{place.address}-restored" if place.access else str(tmp_path / "restored")
    return Place(address=address, access=place.access)


def _store_id(place: Place) -> str:
    store = place.open()
    try:
        return Metadata.read(store).store_id
    finally:
        store.close()


async def _responses(stub: Any, at_time: Any) -> str:
    return "\n".join(str(answer) for answer in await everything(stub, at_time))


async def test_restored_store_gives_the_same_responses(place: Place, start: Start, tmp_path: Path) -> None:
    running = await start()
    stub = await running.call()
    at_time = await history(stub)
    request = publishing(9.0, request_id="again")
    published = await stub.PublishVersion(request)
    responses = await _responses(stub, at_time)
    page = await stub.ListVersions(rpc.ListVersionsRequest(parent=REX, page_size=1))
    made = await run(backup, place, place.address, str(tmp_path / "backup"))
    assert made.status == 0, made.errors
    # Changes after the backup are not in it.
    await publish(stub, 2)
    await running.stop()

    other = _second(place, tmp_path)
    ended = await run(restore, place, str(tmp_path / "backup"), other.address)
    assert ended.status == 0, ended.errors
    assert await garbage(other) == []
    old, new = _store_id(place), _store_id(other)
    assert old != new
    # The folder of views holds views of the old store, which must not be used.
    store = {"address": other.address}
    restored = await (await start(store=store)).call()
    assert await _responses(restored, at_time) == responses.replace(old, new)
    again = await restored.PublishVersion(request)
    assert str(again) == str(published).replace(old, new)
    for number in (1, 2, 4):
        name = f"{REX}/versions/{number}"
        assert (await restored.GetEmbedding(rpc.GetEmbeddingRequest(name=name))).data
    for call in (
        restored.ListVersions(rpc.ListVersionsRequest(parent=REX, page_size=1, page_token=page.next_page_token)),
        restored.WatchEvents(rpc.WatchEventsRequest(parent=SHOP, resume_token=page.revision)).read(),
    ):
        with refused("OUT_OF_RANGE", "STORE_CHANGED"):
            await call
    # Version numbers continue.
    assert [version.number for version in await publish(restored)] == [published.number + 1]


async def test_backup_during_writes_is_consistent(place: Place, start: Start, tmp_path: Path) -> None:
    """Made twice into one folder. A backup has whole requests only, and those of a client in their order."""
    stubs = [await (await start()).call() for _ in range(2)]
    done = asyncio.Event()

    async def publisher(number: int) -> None:
        parent = f"{SHOP}/concepts/c{number}"
        step = 0
        while not done.is_set():
            step += 1
            await stubs[number % 2].PublishVersion(publishing(step + number / 8, parent))
            started.add(number)

    started: set[int] = set()
    publishers = [asyncio.create_task(publisher(number)) for number in range(6)]
    while len(started) < 6:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    folder = tmp_path / "backup"
    for _ in range(2):
        made = await run(backup, place, place.address, str(folder))
        assert made.status == 0, made.errors
        await asyncio.sleep(0.2)
    done.set()
    await asyncio.gather(*publishers)
    other = _second(place, tmp_path)
    assert (await run(restore, place, str(folder), other.address)).status == 0
    assert await garbage(other) == []
    restored = await (await start(store={"address": other.address})).call()
    concepts = (await restored.ListConcepts(rpc.ListConceptsRequest(parent=SHOP))).concepts
    assert len(concepts) == 6
    for concept in concepts:
        theirs = (await restored.ListVersions(rpc.ListVersionsRequest(parent=concept.name, page_size=999))).versions
        ours = (await stubs[0].ListVersions(rpc.ListVersionsRequest(parent=concept.name, page_size=999))).versions
        assert [version.number for version in theirs] == list(range(len(theirs), 0, -1))
        assert [v.tensors_digest for v in theirs] == [v.tensors_digest for v in ours][-len(theirs) :]


async def test_backup_and_restore_reject_wrong_targets_and_damaged_backups(start: Start, tmp_path: Path) -> None:
    place = Place(address=str(tmp_path / "store"), access=None)
    folder = tmp_path / "backup"
    running = await start()
    if running.registry._settings.store.address != place.address:
        await running.stop()
        running = await start(store={"address": place.address})
    await publish(await running.call(), 3)
    await running.stop()
    assert (await run(backup, place, place.address, str(folder))).status == 0
    # A restore into a store that is in use, a folder without a backup, the backup of another store.
    ran = await run(restore, place, str(folder), place.address)
    assert (ran.status, "is not empty" in ran.errors) == (1, True)
    ran = await run(restore, place, str(tmp_path / "none"), str(tmp_path / "new"))
    assert (ran.status, "there is no folder" in ran.errors) == (1, True)
    ran = await run(backup, place, place.address, place.address)
    assert (ran.status, "neither empty nor a backup" in ran.errors) == (1, True)
    assert (await run(restore, place, str(folder), str(tmp_path / "second"))).status == 0
    ran = await run(backup, place, str(tmp_path / "second"), str(folder))
    assert (ran.status, "backup of another store" in ran.errors) == (1, True)

    # A damaged backup: restore names the object, and servers refuse the incomplete store.
    segment = folder / segment_name(13, 1)
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-9] + b"x" + whole[-8:])
    broken = Place(address=str(tmp_path / "broken"), access=None)
    ran = await run(restore, place, str(folder), broken.address)
    assert (ran.status, segment_name(13, 1) in ran.errors) == (1, True)
    ran = await run(fsck, broken, broken.address)
    assert (ran.status, "is being restored" in ran.errors) == (2, True)
    segment.write_bytes(whole)
    manifest = json.loads((folder / "backup.json").read_bytes())
    manifest["entries"][13] -= 1
    (folder / "backup.json").write_text(json.dumps(manifest))
    ran = await run(restore, place, str(folder), str(tmp_path / "third"))
    assert (ran.status, "digest does not match" in ran.errors) == (1, True)
    assert not (tmp_path / "third" / METADATA_NAME).exists()
