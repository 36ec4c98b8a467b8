"""Batches over gRPC: real servers, real files, and a server that is killed while it draws."""

import asyncio
import io
import json
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image
from pseudoword.calls import errors
from pseudoword.channel import Endpoints
from pseudoword.client import Client
from pseudoword.errors import PseudowordError
from pseudoword.generation.v1 import generation_pb2, resources_pb2
from pseudoword.names import BatchName
from pseudoword.registry.v1 import registry_pb2
from pseudoword.registry.v1 import resources_pb2 as registry_resources

from rpc.errors import FailedPrecondition
from rpc.identity import ANONYMOUS, enter
from service.batches.rpcs import NoBatches
from standalone.fsck import inspect
from tests.conftest import Eventually
from tests.fork_server import ForkServer
from tests.processes import Process
from tests.service.conftest import Publish, System

Batch = resources_pb2.Batch
Settings = resources_pb2.PictureSettings


def refused(call: Callable[[], object]) -> PseudowordError:
    with pytest.raises(PseudowordError) as caught:
        call()
    return caught.value


def ended(client: Client, name: str) -> list[resources_pb2.Batch]:
    """All messages of a watch until the batch has ended."""
    return list(client.watch_batch(name))


def folder_of(system: System, batch: resources_pb2.Batch) -> Path:
    assert system.store is not None
    name = BatchName.parse(batch.name)
    return system.store / "batches" / name.tenant / name.batch


def files(folder: Path) -> set[str]:
    """The files in a folder and below it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def manifest(batch: resources_pb2.Batch) -> list[dict[str, Any]]:
    path = Path(batch.manifest_uri.removeprefix("file://"))
    return [json.loads(line) for line in path.read_text().splitlines()]


def alone(client: Client, prompt: str, seed: int, **how: Any) -> bytes:
    (picture,) = client.draw(prompt, seed=seed, **how)
    return picture.data


def test_template_draws_every_combination_with_the_version_of_its_creation(system: System, publish: Publish) -> None:
    publish("batched", seed=1)
    client = system.client
    batch = client.create_batch(
        Batch(
            settings=Settings(prompt="{what} of <batched> in {where}", seed=3, steps=3, exact=True),
            blanks=[
                Batch.Blank(name="what", texts=["a photo", "a sketch"]),
                Batch.Blank(name="where", texts=["the snow", "a {box}"]),
            ],
            seeds=2,
        ),
    )
    assert (batch.state, batch.total, batch.words[0].version) == (
        Batch.STATE_ACTIVE,
        8,
        "tenants/default/concepts/batched/versions/1",
    )
    # A new version of the word does not change the batch.
    publish("batched", seed=2)
    seen = ended(client, batch.name)
    assert [one.state for one in seen][-1] == Batch.STATE_SUCCEEDED
    counts = [one.done for one in seen]
    assert counts == sorted(counts)
    assert counts[-1] == 8
    lines = manifest(seen[-1])
    prompts = [
        "a photo of <batched> in the snow",
        "a photo of <batched> in a {box}",
        "a sketch of <batched> in the snow",
        "a sketch of <batched> in a {box}",
    ]
    assert [(line["text"], line["seed"]) for line in lines] == [(text, seed) for text in prompts for seed in (3, 4)]
    for line in lines[::3]:
        data = (folder_of(system, batch) / line["file_name"]).read_bytes()
        mine = alone(client, line["text"].replace("<batched>", "<batched@1>"), line["seed"], steps=3)
        assert len(data) == line["size_bytes"]
        assert pixels(data) == pixels(mine)
        assert line["record"]["words"][0]["version"].endswith("/versions/1")
    assert files(folder_of(system, batch)) == {"metadata.jsonl", *(f"pictures/{number:08}.png" for number in range(8))}


def pixels(data: bytes) -> bytes:
    return Image.open(io.BytesIO(data)).tobytes()


def test_batch_of_a_killed_server_resumes_with_the_missing_pictures(system: System, publish: Publish) -> None:
    publish("killed", seed=5, vectors=2)
    client = system.client
    prompts = [f"a photo of <killed> number {number}" for number in range(7)]
    batch = client.create_batch(
        Batch(
            settings=Settings(steps=12, exact=True, seed=0), prompts=prompts, seeds=2, layout=Batch.LAYOUT_WEBDATASET
        ),
    )
    folder = folder_of(system, batch)
    end = time.monotonic() + 60
    while len(drawn := list(folder.glob("pictures/*"))) < 2 and not list(folder.glob("parts/*")):
        assert time.monotonic() < end
        time.sleep(0.01)
    system.generation.kill()
    drawn = sorted([*folder.glob("pictures/*.png"), *folder.glob("shards/*")])
    before = {path: path.stat().st_mtime_ns for path in drawn}
    assert before
    assert len(list(folder.glob("shards/*"))) < 4
    system.generation.start()
    last = ended(client, batch.name)[-1]
    assert (last.state, last.done) == (Batch.STATE_SUCCEEDED, 14)
    # Existing files were neither drawn nor packed again.
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items() if path.exists())

    lines = manifest(last)
    assert [(line["text"], line["seed"]) for line in lines] == [(text, seed) for text in prompts for seed in (0, 1)]
    assert files(folder) == {"manifest.jsonl", *(f"shards/{number:06}.tar" for number in range(4))}
    found: dict[str, bytes] = {}
    for shard in sorted((folder / "shards").iterdir()):
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    assert len(found) == 3 * 14
    for number in (0, 5, 13):
        line = lines[number]
        assert found[line["file_name"]] == alone(client, line["text"], line["seed"], steps=12)
        assert found[f"{number:08}.txt"].decode() == line["text"]
        assert json.loads(found[f"{number:08}.json"]) == line["record"]


def test_interactive_request_runs_before_a_batch(system: System) -> None:
    client = system.client
    batch = client.create_batch(Batch(settings=Settings(prompt="a dog", steps=100), seeds=24))
    client.draw("a cat", steps=5, exact=False)
    now = client.batch(batch.name)
    assert (now.state, now.done) == (Batch.STATE_ACTIVE, 0)
    client.cancel_batch(batch.name)


def test_cancelled_batch_keeps_its_pictures(system: System, eventually: Eventually) -> None:
    client = system.client
    batch = client.create_batch(Batch(settings=Settings(prompt="a dog", steps=20), seeds=40))
    eventually(lambda: client.batch(batch.name).done >= 1)
    error = refused(lambda: cancel(client, batch.name, etag="other"))
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    over = cancel(client, batch.name, etag=batch.etag)
    assert over.state == Batch.STATE_CANCELLED
    assert 1 <= over.done < 40
    assert over.HasField("end_time")
    eventually(lambda: system.waiting() == 0)
    assert len(list(folder_of(system, batch).glob("pictures/*.png"))) >= over.done
    assert ended(client, batch.name)[-1].etag == over.etag
    error = refused(lambda: client.cancel_batch(batch.name))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BATCH_STATE")


def cancel(client: Client, name: str, etag: str = "") -> resources_pb2.Batch:
    with errors():
        return client.generation.CancelBatch(generation_pb2.CancelBatchRequest(name=name, etag=etag))


def test_batch_fails_when_the_grant_of_its_word_is_withdrawn(system: System, publish: Publish) -> None:
    with system.client_of("shop") as shop, system.client_of("guest") as guest:
        publish("withdrawn", client=shop)
        update = registry_pb2.UpdateConceptRequest(
            concept=registry_resources.Concept(name=str(shop.concept("withdrawn")), readers=["tenants/guest"])
        )
        with errors():
            shop.registry.UpdateConcept(update)
        settings = Settings(prompt="<shop/withdrawn>", steps=60, exact=True)
        batch = guest.create_batch(Batch(settings=settings, seeds=60))
        update.concept.readers[:] = []
        update.update_mask.paths.append("readers")
        with errors():
            shop.registry.UpdateConcept(update)
        over = ended(guest, batch.name)[-1]
        assert over.state == Batch.STATE_FAILED
        assert PseudowordError.from_status(over.error).reason == "WORD_UNKNOWN"
        assert over.done < 60
        error = refused(lambda: guest.batch(batch.name.replace("guest", "default")))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "BATCH_NOT_FOUND")


def test_batches_are_listed_repeated_by_request_id_and_limited(system: System) -> None:
    with system.client_of("lists") as client:
        spec = Batch(settings=Settings(prompt="a dog", steps=150), seeds=50)
        first = client.create_batch(spec, request_id="one")
        again = client.create_batch(spec, request_id="one")
        assert first.name == again.name
        assert first.settings.seed == again.settings.seed
        error = refused(lambda: client.create_batch(Batch(settings=Settings(prompt="a cat")), request_id="one"))
        assert error.reason == "REQUEST_ID_REUSED"
        assert client.create_batch(spec, validate_only=True).total == 50
        second, third = client.create_batch(spec), client.create_batch(spec)
        error = refused(lambda: client.create_batch(spec))
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BATCHES_FULL")
        client.cancel_batch(second.name)
        names = [batch.name for batch in client.batches()]
        assert names == [third.name, second.name, first.name]
        assert [batch.name for batch in client.batches(filter="state = CANCELLED")] == [second.name]
        request = generation_pb2.ListBatchesRequest(parent="tenants/lists", page_size=2)
        with errors():
            page = client.generation.ListBatches(request)
            request.page_token = page.next_page_token
            rest = client.generation.ListBatches(request)
        assert [batch.name for batch in (*page.batches, *rest.batches)] == names
        assert rest.next_page_token == ""
        request = generation_pb2.ListBatchesRequest(parent="tenants/lists", filter="colour = red")

        def call() -> None:
            with errors():
                client.generation.ListBatches(request)

        assert [field for field, _ in refused(call).violations] == ["filter"]
        for name in (first.name, third.name):
            client.cancel_batch(name)


@pytest.mark.parametrize(
    ("batch", "fields"),
    [
        (Batch(), {"batch.settings.prompt"}),
        (Batch(settings=Settings(prompt="a"), prompts=["b"]), {"batch.settings.prompt"}),
        (Batch(prompts=["a dog", "", "b\x00"]), {"batch.prompts[1]", "batch.prompts[2]"}),
        (
            Batch(settings=Settings(prompt="a dog", steps=0, width=1), seeds=2),
            {"batch.settings.steps", "batch.settings.width"},
        ),
        (Batch(settings=Settings(prompt="a dog"), seeds=101), {"batch.seeds", "batch"}),
        (Batch(settings=Settings(prompt="a dog"), seeds=-1), {"batch.seeds"}),
        (
            Batch(settings=Settings(prompt="a {b}"), blanks=[Batch.Blank(name="c", texts=["d"])]),
            {"batch.blanks[0].name", "batch.blanks"},
        ),
        (Batch(settings=Settings(prompt="a {b}"), blanks=[Batch.Blank(name="b")]), {"batch.blanks[0].texts"}),
        (Batch(settings=Settings(prompt="a dog"), format=9, layout=9), {"batch.format", "batch.layout"}),  # type: ignore[arg-type]
        (Batch(prompts=["a dog " * 40]), {"batch.prompts[0]"}),
    ],
)
def test_invalid_fields_of_a_batch_are_named(system: System, batch: resources_pb2.Batch, fields: set[str]) -> None:
    error = refused(lambda: system.client.create_batch(batch))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert {field for field, _ in error.violations} == fields


def test_batch_with_an_unknown_word_is_rejected(system: System) -> None:
    error = refused(lambda: system.client.create_batch(Batch(prompts=["a dog", "<nobody>"])))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "WORD_UNKNOWN")


def test_fsck_finds_the_store_of_these_batches_sound(system: System) -> None:
    """After all tests above: every object belongs to the store, and rejected or repeated requests left none."""
    report = inspect(str(system.store))
    assert report.sound
    why = [finding.why for finding in report.findings]
    assert not [text for text in why if "no part of a store" in text]
    assert not [text for text in why if "no entry names it" in text]


def test_server_ends_when_its_store_is_replaced(system: System, fork_server: ForkServer, tmp_path: Path) -> None:
    arguments = ["--registry.address", system.registry.address, "--store.address", str(tmp_path / "batches")]
    with Process("service", tmp_path, *arguments, fork_server=fork_server) as generation:
        with Client(Endpoints(registry=system.registry.address, generation=generation.address)) as client:
            batch = Batch(settings=Settings(prompt="a cat", steps=2), seeds=1)
            client.create_batch(batch)
            shutil.rmtree(tmp_path / "batches" / "log")
            (tmp_path / "batches" / "store.json").unlink()
        assert generation.wait() == 2
        assert "the store was replaced" in generation.log_end()


def test_batches_need_a_store() -> None:
    def call() -> None:
        enter(ANONYMOUS)
        asyncio.run(NoBatches().get(generation_pb2.GetBatchRequest(name="tenants/a/batches/b")))

    with pytest.raises(FailedPrecondition) as caught:
        call()
    assert caught.value.reason == "NO_BATCH_STORE"
