"""A store that is deleted and restored in the same place under running replicas: they stop without a write."""

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub

from standalone.backup import backup, restore
from storage.objects.base import list_all
from tests.conftest import Place
from tests.processes import Process
from tests.registry.commands import garbage, run
from tests.registry.conftest import Start
from tests.registry.requests import REX, SHOP, publish, publishing, refused


def _wipe(place: Place) -> None:
    store = place.open()
    for info in list(list_all(store, "")):
        store.delete(info.name)
    store.close()


async def _restore(place: Place, folder: Path) -> None:
    """As an operator does it: servers that have not noticed the deletion write again, and restore refuses the store."""
    for _ in range(20):
        await asyncio.to_thread(_wipe, place)
        ran = await run(restore, place, str(folder), place.address)
        if "is not empty" not in ran.errors:
            break
    assert ran.status == 0, ran.errors


async def test_replicas_refuse_requests_after_their_store_was_replaced(
    place: Place, start: Start, tmp_path: Path
) -> None:
    running, idle = [await start() for _ in range(2)]
    stub, quiet = await running.call(), await idle.call()
    await publish(stub, 3)
    assert (await run(backup, place, place.address, str(tmp_path / "backup"))).status == 0
    # The restored log will be shorter than the one that the replicas know.
    await publish(stub, 2)
    assert (await quiet.GetConcept(rpc.GetConceptRequest(name=REX))).version_count == 5
    token = (await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP))).revision
    watch = stub.WatchEvents(rpc.WatchEventsRequest(parent=SHOP, resume_token=token))
    await watch.initial_metadata()
    done = asyncio.Event()

    async def writer(number: int) -> int:
        """Publishes until `done`."""
        made = 0
        while not done.is_set():
            try:
                await (stub if number % 2 else quiet).PublishVersion(publishing(9.0), timeout=10)
                made += 1
            except grpc.aio.AioRpcError as error:
                # FAILED_PRECONDITION and similar errors of a store that is being deleted.
                assert error.code() is not grpc.StatusCode.INTERNAL, error
                await asyncio.sleep(0.05)
        return made

    writers = [asyncio.create_task(writer(number)) for number in range(4)]
    await _restore(place, tmp_path / "backup")
    for replica in (stub, quiet):
        with refused("UNAVAILABLE", "STORE_REPLACED") as refusal:
            await replica.GetConcept(rpc.GetConceptRequest(name=REX))
        assert refusal.error.retry_after is not None
        with refused("UNAVAILABLE", "STORE_REPLACED"):
            await replica.PublishVersion(publishing(9.0))
        old = rpc.GetConceptRequest(name=REX)
        old.max_staleness.FromSeconds(3600)
        with refused("UNAVAILABLE", "STORE_REPLACED"):
            await replica.GetConcept(old)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        while await watch.read() is not grpc.aio.EOF:
            pass
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    done.set()
    await asyncio.gather(*writers)

    # No entry was added to the restored ones, and a new replica serves them.
    await garbage(place)
    fresh = await (await start()).call()
    assert (await fresh.GetConcept(rpc.GetConceptRequest(name=REX))).version_count == 3
    with refused("OUT_OF_RANGE", "STORE_CHANGED"):
        await fresh.WatchEvents(rpc.WatchEventsRequest(parent=SHOP, resume_token=token)).read()
    assert (await publish(fresh))[0].number == 4


@pytest.mark.process
async def test_process_ends_when_its_store_is_replaced_and_can_be_restarted(tmp_path: Path) -> None:
    place = Place(address=str(tmp_path / "store"), access=None)
    arguments = ("--store.views", str(tmp_path / "views"), "--server.drain-s", "1")
    with Process("registry", tmp_path, *arguments, environment=place.environment) as one:
        async with grpc.aio.insecure_channel(one.address) as channel:
            stub: Any = RegistryServiceStub(channel)
            await publish(stub, 2)
            assert (await run(backup, place, place.address, str(tmp_path / "backup"))).status == 0
            await publish(stub, 2)
            await _restore(place, tmp_path / "backup")
            with refused("UNAVAILABLE", "STORE_REPLACED"):
                await stub.GetConcept(rpc.GetConceptRequest(name=REX))
        assert await asyncio.to_thread(one.wait) == 2
        assert "the store was replaced" in one.log_end()
        await asyncio.to_thread(one.start)
        async with grpc.aio.insecure_channel(one.address) as channel:
            found = await RegistryServiceStub(channel).GetConcept(rpc.GetConceptRequest(name=REX))
            assert found.version_count == 2
