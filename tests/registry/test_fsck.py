"""`pseudoword fsck` on the store of a registry: the blobs of its versions exist and match them."""

import json
from pathlib import Path
from typing import Any

from pseudoword.registry.v1 import registry_pb2 as rpc

from standalone.fsck import fsck
from storage.ledger.entry import decode, encode, entry_name
from storage.ledger.log import Metadata
from tests.conftest import Place
from tests.registry.commands import run
from tests.registry.conftest import Running, Start
from tests.registry.requests import REX, publish, publishing, refused, version


async def _findings(place: Place) -> tuple[int, list[tuple[str, str, str]]]:
    ran = await run(fsck, place, place.address, "--json")
    return ran.status, [(found["severity"], found["object"], found["why"]) for found in ran.json["findings"]]


async def _published(stub: Any) -> None:
    described = version()
    described.provenance.recipe_json = json.dumps({"steps": 3})
    await stub.PublishVersion(publishing(1.0, version=described))
    await publish(stub, 1)


async def test_store_in_use_is_sound(place: Place, running: Running) -> None:
    await _published(await running.call())
    ran = await run(fsck, place, place.address)
    assert ran.status == 0, ran.output
    assert ran.output.splitlines()[-1] == "sound"
    assert "2 entries" in ran.output
    assert "3 blobs" in ran.output


async def test_damaged_objects_are_named_and_the_rest_is_served(place: Place, running: Running) -> None:
    stub = await running.call()
    await _published(stub)
    await publish(stub, 2)
    store = place.open()
    rows = {}
    for number in range(1, 5):
        entry = decode(
            store.get(entry_name(13, number)), store_id=Metadata.read(store).store_id, shard=13, number=number
        )
        rows[number] = entry.events[-1].body
    flipped, missing, record = rows[2]["blob"], rows[3]["blob"], rows[1]["record"]
    data = bytearray(store.get(flipped))
    data[-1] ^= 1
    store.put(flipped, bytes(data))
    store.put(record, store.get(record)[:-1])
    store.delete(missing)
    store.close()

    status, found = await _findings(place)
    assert status == 1
    assert {(severity, name) for severity, name, _ in found} == {
        ("damage", flipped),
        ("damage", missing),
        ("damage", record),
    }
    assert {why for _, name, why in found if name == missing} == {f"it is missing; {entry_name(13, 3)} names it"}
    with refused("DATA_LOSS", "DAMAGED", object=flipped):
        await stub.GetEmbedding(rpc.GetEmbeddingRequest(name=f"{REX}/versions/2"))
    with refused("DATA_LOSS", "OBJECT_MISSING", object=missing):
        await stub.GetEmbedding(rpc.GetEmbeddingRequest(name=f"{REX}/versions/3"))
    with refused("DATA_LOSS", "DAMAGED", object=record):
        await stub.GetVersion(rpc.GetVersionRequest(name=f"{REX}/versions/1"))
    for number in (1, 4):
        assert (await stub.GetEmbedding(rpc.GetEmbeddingRequest(name=f"{REX}/versions/{number}"))).data
    assert (await publish(stub))[0].number == 5


async def test_entry_with_a_wrong_tensors_digest_is_found(tmp_path: Path, start: Start, place: Place) -> None:
    running = await start()
    await publish(await running.call())
    await running.stop()
    store = place.open()
    name = entry_name(13, 1)
    entry = decode(store.get(name), store_id=Metadata.read(store).store_id, shard=13, number=1)
    body = entry.events[-1].body
    body["tensors_digest"] = "0" * 64
    store.put(name, encode(entry))
    store.close()
    status, found = await _findings(place)
    assert status == 1
    assert ("damage", body["blob"]) in {(severity, name) for severity, name, _ in found}


async def test_missing_store_is_an_error(tmp_path: Path) -> None:
    place = Place(address=str(tmp_path / "nothing"), access=None)
    ran = await run(fsck, place, place.address)
    assert (ran.status, "there is no folder" in ran.errors) == (2, True)
    (tmp_path / "nothing").mkdir()
    ran = await run(fsck, place, place.address)
    assert (ran.status, "no object 'store.json'" in ran.errors) == (2, True)
    assert (await run(fsck, place, "s3://bucket")).status == 2
