"""Objects and claims of a batch that several servers write into one store, also after a server was suspended."""

import asyncio
import json
import time
from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import pytest
from pseudoword.generation.v1 import generation_pb2, resources_pb2
from pseudoword.names import BatchName

from diffusion.checkpoint import BaseModel
from service.batches.claims import Claims
from service.batches.output import Output, finished
from service.batches.plan import Item, Plan
from service.request.image_file import to_file
from service.request.params import validate
from service.settings import Defaults, Limits
from storage.errors import ObjectMissing
from storage.objects.base import ObjectStore, list_all

NAME = BatchName("default", "b1")
PLAN = Plan(prompts=["a dog", "a cat"], seeds=3, seed=0, shard_pictures=4)
LEASE = timedelta(seconds=3)


def output(store: ObjectStore, *, webdataset: bool = True) -> Output:
    return Output(store, NAME, PLAN, ending="png", webdataset=webdataset)


def objects(store: ObjectStore) -> set[str]:
    return {info.name.removeprefix("batches/default/b1/") for info in list_all(store, "batches/")}


@pytest.fixture
def file(model: BaseModel) -> "Files":
    return Files(model)


class Files:
    """Files that differ by server: `server` is the grey level."""

    def __init__(self, model: BaseModel) -> None:
        request = generation_pb2.GenerateRequest(parent="tenants/default")
        request.settings.prompt = "a dog"
        self._drawing = validate(request, model.spec, Defaults(), Limits())

    def __call__(self, server: int) -> bytes:
        data, _ = to_file(np.full((8, 8, 3), server, np.uint8), self._drawing, resources_pb2.PictureRecord())
        return data


def put(to: Output, items: Sequence[Item], data: bytes) -> None:
    for item in items:
        to.put(item, data)


def test_server_that_wakes_up_leaves_a_shard_of_another_server_unchanged(store: ObjectStore, file: Files) -> None:
    slow, quick = output(store), output(store)
    items = PLAN.items(0)
    put(slow, items[:1], file(1))
    assert quick.missing(0) == items[1:]
    put(quick, items[1:], file(2))
    quick.finish(0)
    tar = store.get("batches/default/b1/shards/000000.tar")
    # The slow server continues to draw pictures that have been packed and removed.
    put(slow, items[1:], file(1))
    slow.finish(0)
    assert objects(store) == {"shards/000000.tar", "parts/000000.jsonl"}
    assert store.get("batches/default/b1/shards/000000.tar") == tar

    assert slow.missing(0) is None
    put(quick, PLAN.items(1), file(2))
    quick.finish(1)
    assert finished(store, NAME, PLAN.shards) == {0, 1}
    quick.close()
    put(slow, PLAN.items(1), file(1))
    slow.finish(1)
    slow.close()
    assert objects(store) == {"manifest.jsonl", "shards/000000.tar", "shards/000001.tar"}
    lines = [json.loads(line) for line in store.get(slow.manifest).splitlines()]
    assert [(line["text"], line["seed"]) for line in lines] == [(t, s) for t in ("a dog", "a cat") for s in range(3)]


def test_packing_ends_when_another_server_removes_the_pictures(
    store: ObjectStore, file: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = output(store), output(store)
    put(slow, PLAN.items(0), file(1))
    get = store.get

    def late(name: str) -> bytes:
        monkeypatch.setattr(store, "get", get)
        quick.finish(0)
        return get(name)

    monkeypatch.setattr(store, "get", late)
    slow.finish(0)
    assert objects(store) == {"shards/000000.tar", "parts/000000.jsonl"}


def test_lost_picture_is_missing_again(store: ObjectStore, file: Files) -> None:
    one = output(store, webdataset=False)
    items = PLAN.items(0)
    put(one, items, file(1))
    store.delete("batches/default/b1/pictures/00000002.png")
    one.finish(0)
    assert finished(store, NAME, PLAN.shards) == set()
    assert one.missing(0) == [items[2]]


def test_lost_part_of_the_manifest_does_not_remove_the_other_parts(store: ObjectStore, file: Files) -> None:
    one = output(store)
    for shard in range(PLAN.shards):
        put(one, PLAN.items(shard), file(1))
        one.finish(shard)
    store.delete("batches/default/b1/parts/000001.jsonl")
    with pytest.raises(ObjectMissing):
        one.close()
    assert "parts/000000.jsonl" in objects(store)


async def test_claim_is_exclusive_until_its_lease_ends(store: ObjectStore) -> None:
    mine, yours = Claims(store, NAME, LEASE), Claims(store, NAME, LEASE)
    first = mine.take([0, 1])
    second = yours.take([0, 1])
    assert first is not None
    assert second is not None
    assert (first.shard, second.shard) == (0, 1)
    assert mine.take([0, 1]) is None
    end = time.monotonic() + 30
    async with mine.held(first):  # the other server does not renew its claim
        while (third := await asyncio.to_thread(mine.take, [0, 1])) is None:
            assert time.monotonic() < end
            await asyncio.sleep(0.2)
        assert third.shard == 1
        assert third.name != second.name
    again = yours.take([0, 1])
    assert again is not None
    assert again.shard == 0


def test_concurrent_claims_of_a_shard_have_one_winner(store: ObjectStore) -> None:
    async def run() -> list[int]:
        claims = [Claims(store, NAME, LEASE) for _ in range(8)]
        found = await asyncio.gather(*(asyncio.to_thread(one.take, [0, 1, 2]) for one in claims))
        return sorted(claim.shard for claim in found if claim is not None)

    assert asyncio.run(run()) == [0, 1, 2]
