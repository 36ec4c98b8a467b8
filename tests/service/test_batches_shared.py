"""Batches in S3 (a real MinIO), drawn by two servers that share a store."""

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pseudoword.channel import Endpoints
from pseudoword.client import Client
from pseudoword.generation.v1 import resources_pb2
from pseudoword.names import BatchName

from storage.objects.base import ObjectInfo, ObjectStore, list_all
from tests.conftest import Eventually, Minio, Place
from tests.fork_server import ForkServer
from tests.processes import Process

Batch = resources_pb2.Batch
Settings = resources_pb2.PictureSettings
SHARD_PICTURES = 2
pytestmark = pytest.mark.timeout(400)  # it starts three servers
DRAWN = "pseudoword_generation_pictures_total"


class Pair:
    """Two servers, a client of each server, and their store."""

    def __init__(self, servers: tuple[Process, Process], clients: tuple[Client, Client], place: Place) -> None:
        self.servers = servers
        self.clients = clients
        self.place = place
        self.store: ObjectStore = place.open()

    def drawn(self) -> tuple[float, float]:
        """The number of pictures that each server has drawn since its start."""
        first, second = self.servers
        return first.metric(DRAWN), second.metric(DRAWN)

    def folder(self, batch: resources_pb2.Batch) -> str:
        name = BatchName.parse(batch.name)
        return f"batches/{name.tenant}/{name.batch}/"

    def objects(self, batch: resources_pb2.Batch) -> dict[str, ObjectInfo]:
        """The objects of a batch by their names in its folder."""
        folder = self.folder(batch)
        return {info.name.removeprefix(folder): info for info in list_all(self.store, folder)}

    def pictures(self, batch: resources_pb2.Batch) -> dict[str, ObjectInfo]:
        return {name: info for name, info in self.objects(batch).items() if name.startswith("pictures/")}

    def manifest(self, batch: resources_pb2.Batch) -> list[tuple[str, int]]:
        """Prompt and seed of each line."""
        assert batch.manifest_uri.startswith(f"{self.place.address}/{self.folder(batch)}")
        lines = self.store.get(batch.manifest_uri.removeprefix(f"{self.place.address}/")).splitlines()
        return [(line["text"], line["seed"]) for line in map(json.loads, lines)]


@pytest.fixture(scope="module")
def pair(minio: Minio, fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    place = Place(address=f"s3://{minio.bucket}/batches-of-two", access=minio.access)
    folders: list[Path] = [tmp_path_factory.mktemp(name) for name in ("registry", "first", "second")]
    with Process("registry", folders[0], "--store.address", str(folders[0] / "store")) as registry:
        servers: list[Process] = []
        clients: list[Client] = []
        for folder in folders[1:]:
            settings = ["--registry.address", registry.address, "--store.views", str(folder / "views")]
            settings += ["--model.threads", "1", "--batches.lease", "PT3S"]
            settings += ["--batches.shard-pictures", str(SHARD_PICTURES)]
            servers.append(
                Process("service", folder, *settings, environment=place.environment, fork_server=fork_server)
            )
        with ExitStack() as stack:
            for server in servers:
                stack.enter_context(server)
                client = Client(Endpoints(registry=registry.address, generation=server.address))
                clients.append(stack.enter_context(client))
            made = Pair((servers[0], servers[1]), (clients[0], clients[1]), place)
            yield made
            made.store.close()


def test_two_servers_share_a_batch_and_draw_no_picture_twice(pair: Pair) -> None:
    before = pair.drawn()
    batch = pair.clients[0].create_batch(Batch(settings=Settings(prompt="a dog", steps=30, guidance_scale=1), seeds=24))
    # The other server learns of the batch from the log.
    *_, last = pair.clients[1].watch_batch(batch.name)
    assert (last.state, last.done) == (Batch.STATE_SUCCEEDED, 24)
    assert pair.manifest(last) == [("a dog", seed) for seed in range(batch.settings.seed, batch.settings.seed + 24)]
    assert set(pair.objects(batch)) == {"metadata.jsonl", *(f"pictures/{number:08}.png" for number in range(24))}
    shares = [now - then for now, then in zip(pair.drawn(), before, strict=True)]
    assert sum(shares) == 24
    assert min(shares) > 0


def test_server_suspended_until_the_batch_has_ended_leaves_no_object(pair: Pair, eventually: Eventually) -> None:
    """It wakes up while it draws pictures that the other server has drawn, packed and removed."""
    first, _ = pair.servers
    batch = pair.clients[1].create_batch(
        Batch(
            settings=Settings(prompt="a fox", steps=30, seed=0, guidance_scale=1),
            seeds=16,
            layout=Batch.LAYOUT_WEBDATASET,
        )
    )
    eventually(lambda: sum(name.startswith("claims/") for name in pair.objects(batch)) == 4)
    first.signal(signal.SIGSTOP)
    *_, last = pair.clients[1].watch_batch(batch.name)
    before = pair.objects(batch)
    first.signal(signal.SIGCONT)
    assert (last.state, last.done) == (Batch.STATE_SUCCEEDED, 16)
    assert pair.manifest(last) == [("a fox", seed) for seed in range(16)]
    assert set(before) == {"manifest.jsonl", *(f"shards/{number:06}.tar" for number in range(8))}
    eventually(lambda: first.metric("pseudoword_generation_pictures_waiting") == 0)
    eventually(lambda: pair.objects(batch) == before, lambda: pair.objects(batch).keys() ^ before.keys())
    assert pair.clients[0].batch(batch.name).state == Batch.STATE_SUCCEEDED


def test_other_server_finishes_the_batch_of_a_killed_server(pair: Pair, eventually: Eventually) -> None:
    first, _ = pair.servers
    before = pair.drawn()
    batch = pair.clients[1].create_batch(
        Batch(settings=Settings(prompt="a cat", steps=30, seed=0, guidance_scale=1), seeds=30)
    )
    kept: float = 0

    def both_have_drawn() -> bool:
        nonlocal kept
        kept, others = (now - then for now, then in zip(pair.drawn(), before, strict=True))
        return min(kept, others) > 0 and len(pair.pictures(batch)) >= kept + others

    eventually(both_have_drawn)
    first.kill()
    present = pair.pictures(batch)
    *_, last = pair.clients[1].watch_batch(batch.name)
    assert (last.state, last.done) == (Batch.STATE_SUCCEEDED, 30)
    assert pair.manifest(last) == [("a cat", seed) for seed in range(30)]
    after = pair.objects(batch)
    assert set(after) == {"metadata.jsonl", *(f"pictures/{number:08}.png" for number in range(30))}
    assert {name: after[name] for name in present} == present
    # Pictures that the killed server had stored were not drawn again.
    assert pair.servers[1].metric(DRAWN) - before[1] <= 30 - kept
