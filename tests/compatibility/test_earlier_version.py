"""A store, a job log, a backup and a client of version 0.1.0 work with today's servers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pseudoword.channel import Endpoints
from pseudoword.client import Client
from pseudoword.generation.v1.resources_pb2 import Batch
from pseudoword.trainer.v1.resources_pb2 import Job

from tests.compatibility.conftest import DATA, unpack
from tests.processes import Process

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]
_PSEUDOWORD = str(Path(sys.executable).with_name("pseudoword"))
_OLD_CLIENT = """
import sys
from pathlib import Path
from pseudoword.channel import Endpoints
from pseudoword.client import Client
import pseudoword.client

assert ".whl" in pseudoword.client.__file__, pseudoword.client.__file__
registry, trainer, generation, *pictures = sys.argv[1:]
with Client(Endpoints(registry=registry, trainer=trainer, generation=generation)) as client:
    version = client.learn("zed", [Path(picture) for picture in pictures])
    client.set_alias("zed", "production", version.number)
    (picture,) = client.draw("a photo of <zed@production> beside <rex>", steps=2)
    assert picture.data.startswith(b"\\x89PNG")
    print(version.name, [concept.name for concept in client.words()])
"""


@pytest.fixture
def client(endpoints: Endpoints) -> Iterator[Client]:
    with Client(endpoints) as client:
        yield client


def test_words_aliases_and_evaluations_are_unchanged(client: Client) -> None:
    rex = {version.number: version for version in client.versions("rex")}
    assert sorted(rex) == [1, 2]
    assert [encoder.vectors for encoder in rex[2].base_model.encoders] == [2]
    assert client.resolve("rex").number == 1
    assert client.resolve("rex@canary").number == 2
    moves = [(change.version.rpartition("/")[2], change.reason) for change in client.alias_changes("rex", "production")]
    assert moves == [("1", "it was not"), ("2", "better"), ("1", "first")]
    kaiju = client.resolve("kaiju")
    assert (kaiju.description, dict(kaiju.labels)) == ("from a file", {"team": "toys"})
    assert client.embedding(kaiju.name).data
    (evaluation,) = client.evaluations(rex[1].name)
    assert evaluation.metrics["held_out_loss"] == pytest.approx(0.031850, abs=1e-6)


def test_killed_jobs_resume_from_their_checkpoints(client: Client, data: Path) -> None:
    began = {
        job.name: job for job in client.jobs() if job.concept.endswith(("/mia", "/q0", "/q1")) and not job.evaluates
    }
    assert len(began) == 4
    cancelled = [name for name, job in began.items() if job.state == Job.STATE_CANCELLED]
    assert len(cancelled) == 1
    for name in began.keys() - set(cancelled):
        *_, last = client.watch_job(name)
        assert last.job.state == Job.STATE_SUCCEEDED, last
    assert client.resolve("mia").provenance.steps == 150
    log = (data / "trainer.log").read_text()
    assert "resumed from a checkpoint" in log


def test_batch_is_unchanged(client: Client) -> None:
    (batch,) = client.batches()
    assert (batch.state, batch.done) == (Batch.STATE_SUCCEEDED, 2)
    assert list(client.batch(batch.name).prompts) == ["a photo of <rex>", "a sketch of <rex@2>"]


def test_fsck_finds_the_stores_sound(data: Path, client: Client) -> None:
    for name in ("store", "jobs", "batches"):
        found = subprocess.run([_PSEUDOWORD, "fsck", str(data / name)], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout + found.stderr


def test_backup_is_restored_and_served(tmp_path: Path) -> None:
    unpack("backup.tar.gz", tmp_path / "backup")
    for name in ("store", "jobs"):
        restore = [_PSEUDOWORD, "restore", str(tmp_path / "backup" / name), str(tmp_path / name)]
        subprocess.run(restore, check=True, capture_output=True)
    with (
        Process("registry", tmp_path, "--store.address", str(tmp_path / "store")) as registry,
        Client(Endpoints(registry=registry.address)) as client,
    ):
        assert client.resolve("rex").number == 1
        assert client.embedding(client.resolve("rex@canary").name).data
    found = subprocess.run([_PSEUDOWORD, "fsck", str(tmp_path / "jobs")], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_client_of_the_earlier_version_learns_and_draws(endpoints: Endpoints) -> None:
    environment = os.environ | {"PYTHONPATH": str(DATA / "pseudoword-0.1.0-py3-none-any.whl")}
    pictures = [str(path) for path in sorted((ROOT / "examples" / "rex").glob("*.png"))]
    addresses = [endpoints.registry, endpoints.trainer, endpoints.generation]
    done = subprocess.run(
        [sys.executable, "-c", _OLD_CLIENT, *addresses, *pictures],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "tenants/default/concepts/zed/versions/1" in done.stdout
