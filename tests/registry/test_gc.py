"""Garbage collection: blobs that a version needs are kept, all others are deleted after a grace period."""

import asyncio
import struct
import uuid
from pathlib import Path
from typing import Any

import pytest
from pseudoword.registry.v1 import registry_pb2 as rpc

from registry.app import Registry
from registry.catalogue.commands import CondemnBlobs
from registry.catalogue_store import CatalogueStore
from rpc.errors import FailedPrecondition
from standalone.gc import collect
from storage.ledger.ledger import Ledger
from storage.objects.blobs import Blob, Blobs
from tests.conftest import Place
from tests.registry.commands import garbage, run
from tests.registry.conftest import Running, Start
from tests.registry.requests import REX, SHOP, pointing, publish, publishing, version
from trainer.jobs.commands import AddPicture, DeletePicture
from trainer.jobs.state_machine import TrainerStateMachine

PRODUCTION = f"{REX}/aliases/production"
GONE = f"{SHOP}/concepts/gone"


def _names(place: Place) -> set[str]:
    store = place.open()
    try:
        return {info.name for info in store.list("t/")}
    finally:
        store.close()


async def _purge(stub: Any, concept: str) -> None:
    await stub.DeleteConcept(rpc.DeleteConceptRequest(name=concept))
    await stub.PurgeConcept(rpc.PurgeConceptRequest(name=concept, force=True))


async def test_unneeded_blobs_are_condemned_then_deleted(place: Place, running: Running) -> None:
    stub = await running.call()
    await publish(stub, 2)
    await stub.SetAlias(pointing("production", 1))
    described = version()
    described.provenance.recipe_json = '{"steps": 3}'
    request = publishing(7.0, parent=GONE, version=described, request_id="gone")
    purged = await stub.PublishVersion(request)
    await _purge(stub, GONE)
    store = place.open()
    orphan = Blobs(store).put("shop", b"left by a publisher that died")
    strange = Blobs(store).put("nobody", b"of a tenant that does not exist")
    everything = _names(place)
    needed = {row for row in everything if row not in {orphan.name, strange.name} and not await _is_of(store, row, 7.0)}
    unneeded = everything - needed
    assert len(unneeded) == 4

    # All are younger than the default grace period.
    early = await run(collect, place, place.address, "--json")
    assert (early.status, early.json["condemned"], early.json["waiting"]) == (0, [], 4)
    dry = await run(collect, place, place.address, "--json", "--dry-run", "--grace", "0")
    assert (set(dry.json["condemned"]), dry.json["deleted"]) == (unneeded, [])
    first = await run(collect, place, place.address, "--json", "--grace", "0")
    assert (set(first.json["condemned"]), first.json["deleted"]) == (unneeded, [])
    assert _names(place) == everything
    assert set(await garbage(place)) == unneeded
    later = await run(collect, place, place.address, "--json")
    assert (later.json["deleted"], later.json["waiting"]) == ([], 4)
    second = await run(collect, place, place.address, "--json", "--grace", "0")
    assert (second.json["condemned"], set(second.json["deleted"])) == ([], unneeded)
    assert second.json["bytes"] > 0
    assert _names(place) == needed
    assert await garbage(place) == []
    store.close()

    # Versions are served as before, and the audit records do not show the collector.
    for number in (1, 2):
        assert (await stub.GetEmbedding(rpc.GetEmbeddingRequest(name=f"{REX}/versions/{number}"))).data
    audit = await stub.ListAuditRecords(rpc.ListAuditRecordsRequest(parent=SHOP))
    assert "collector" not in {record.actor for record in audit.records}
    # A repeated request gets its first response although the concept was purged.
    again = await stub.PublishVersion(request)
    assert (again.name, again.tensors_digest) == (purged.name, purged.tensors_digest)
    assert (await stub.GetAlias(rpc.GetAliasRequest(name=PRODUCTION))).version == f"{REX}/versions/1"


async def _is_of(store: Any, name: str, value: float) -> bool:
    """Whether a blob holds the purged version's vectors or record."""
    data = await asyncio.to_thread(store.get, name)
    return struct.pack("<f", value) in data or b"steps" in data


async def test_publisher_whose_blob_was_collected_uploads_it_again(
    place: Place, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded, awake = asyncio.Event(), asyncio.Event()
    names: list[str] = []

    async def slow(self: CatalogueStore, tenant: str, data: bytes) -> Blob:
        blob = await asyncio.to_thread(self._blobs.put, tenant, data)
        names.append(blob.name)
        uploaded.set()
        await awake.wait()
        return blob

    monkeypatch.setattr(CatalogueStore, "put_blob", slow)
    stub = await running.call()
    publishing_now = asyncio.ensure_future(stub.PublishVersion(publishing(3.0)))
    await uploaded.wait()
    for _ in range(2):
        assert (await run(collect, place, place.address, "--grace", "0")).status == 0
    assert _names(place) == set()
    awake.set()
    published = await publishing_now
    assert published.number == 1
    assert len(names) == 2
    assert _names(place) == {names[1]}
    assert (await stub.GetEmbedding(rpc.GetEmbeddingRequest(name=published.name))).data
    assert await garbage(place) == []


async def test_blob_in_use_cannot_be_condemned(place: Place, running: Running) -> None:
    stub = await running.call()
    await publish(stub)
    (name,) = _names(place)
    registry: Registry = running.registry
    with pytest.raises(FailedPrecondition) as refusal:
        await registry._ledgers[0].commit(
            registry._ledgers[0].shards - 3,  # the shop's
            CondemnBlobs(peer="", tenant="shop", blobs=(name,)),
            request_id="condemn",
            tenant="shop",
            digest="",
            actor="collector",
            on_behalf_of=None,
            timeout_s=30,
        )
    assert refusal.value.reason == "BLOB_IN_USE"


async def test_collecting_while_clients_publish_deletes_no_needed_blob(place: Place, start: Start) -> None:
    """The collector runs without a grace period while eight clients of two replicas publish."""
    stubs = [await (await start()).call() for _ in range(2)]
    done = asyncio.Event()

    async def collecting() -> int:
        runs = 0
        while not done.is_set():
            assert (await run(collect, place, place.address, "--grace", "0")).status == 0
            runs += 1
        return runs

    async def publisher(number: int) -> None:
        for step in range(4):
            await stubs[number % 2].PublishVersion(publishing(number * 100.0 + step), timeout=60)

    collector = asyncio.create_task(collecting())
    await asyncio.gather(*(publisher(number) for number in range(8)))
    done.set()
    assert await collector >= 1
    page = await stubs[0].ListVersions(rpc.ListVersionsRequest(parent=REX, page_size=1000))
    assert [found.number for found in page.versions] == list(range(32, 0, -1))
    for found in page.versions:
        assert (await stubs[1].GetEmbedding(rpc.GetEmbeddingRequest(name=found.name))).data
    await garbage(place)


async def test_unneeded_blobs_of_a_trainer_are_deleted(place: Place, tmp_path: Path) -> None:
    """Blobs that no entry has named are deleted only with --stopped."""
    store = place.open()
    ledger = Ledger.open(store, TrainerStateMachine(), shards=1, view_folder=tmp_path / "view")
    blobs = Blobs(store)
    needed, dropped, lost = [blobs.put("shop", name) for name in (b"needed", b"dropped", b"lost")]

    async def change(command: AddPicture | DeletePicture) -> None:
        await ledger.commit(
            0,
            command,
            request_id=str(uuid.uuid4()),
            tenant="shop",
            digest="",
            actor="trainer",
            on_behalf_of=None,
            timeout_s=30,
        )

    for blob in (needed, dropped):
        picture = AddPicture(
            name=f"tenants/shop/pictures/{blob.sha256}",
            blob=blob.name,
            media_type="image/png",
            size_bytes=6,
            width=1,
            height=1,
            lifetime_us=10**12,
        )
        await change(picture)
    # As if the trainer had died before it deleted the bytes.
    await change(DeletePicture(name=f"tenants/shop/pictures/{dropped.sha256}"))
    await ledger.close()
    store.close()
    early = await run(collect, place, place.address, "--json")
    assert (early.status, early.json["deleted"], early.json["waiting"]) == (0, [], 2), early.errors
    dry = await run(collect, place, place.address, "--json", "--dry-run", "--grace", "0")
    assert dry.json["deleted"] == [dropped.name]
    first = await run(collect, place, place.address, "--json", "--grace", "0")
    assert (first.json["deleted"], first.json["waiting"]) == ([dropped.name], 1)
    assert _names(place) == {needed.name, lost.name}
    second = await run(collect, place, place.address, "--json", "--grace", "0", "--stopped")
    assert second.json["deleted"] == [lost.name]
    assert _names(place) == {needed.name}
    assert await garbage(place) == []


async def test_missing_store_is_an_error(tmp_path: Path) -> None:
    place = Place(address=str(tmp_path), access=None)
    for address, why in ((tmp_path / "nothing", "there is no folder"), (tmp_path, "there is no store")):
        ran = await run(collect, place, str(address), "--dry-run")
        assert (ran.status, why in ran.errors) == (1, True), ran.errors
    assert not (tmp_path / "nothing").exists()
