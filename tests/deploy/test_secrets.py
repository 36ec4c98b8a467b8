"""make-secrets makes every secret of the manifests; MinIO, NATS and the servers run with them."""

import asyncio
import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pseudoword.channel import Endpoints
from pseudoword.client import Client
from pseudoword.errors import PseudowordError
from pseudoword.generation.v1 import resources_pb2

from rpc.identity import Role, Tokens
from tests.conftest import free_port
from tests.deploy.rendering import DEPLOY, FOLDERS, ROOT, Container, containers, environment, files, of_kind, render
from tests.processes import Process
from trainer.queue.broker import Broker
from trainer.queue.settings import NatsSettings

NAMESPACE = "pseudoword"
FULL = "tests/garbage-collection+network-policies"
Secrets = dict[str, dict[str, bytes]]


@pytest.fixture(scope="module")
def secrets() -> Secrets:
    """Name -> key -> value, as make-secrets prints them."""
    done = subprocess.run(
        [DEPLOY / "scripts" / "make-secrets", NAMESPACE, "shop"], capture_output=True, text=True, check=True
    )
    found = list(yaml.safe_load_all(done.stdout))
    found = [item for item in found if item is not None]
    assert all(item["kind"] == "Secret" and item["metadata"]["namespace"] == NAMESPACE for item in found)
    return {
        item["metadata"]["name"]: {key: base64.b64decode(value) for key, value in item["data"].items()}
        for item in found
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_make_secrets_makes_every_referenced_secret(folder: str, secrets: Secrets) -> None:
    assert of_kind(render(folder), "Secret") == [], "no secret is ever part of the manifests"
    for found in containers(folder):
        for value in environment(folder, found.spec).values():
            if value.startswith("secret:"):
                name, key = value.removeprefix("secret:").split("/")
                assert key in secrets[name], f"{found.where}: {value}"
        for name, key in files(found.pod, found.spec).values():
            assert key == "*" or key in secrets[name], f"{found.where}: {name}/{key}"
            assert name in secrets, f"{found.where}: {name}"


def test_tokens_have_their_tenants_and_roles(secrets: Secrets, tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_bytes(secrets["tokens"]["tokens.toml"])
    tokens = Tokens(file)
    client = tokens.principal(secrets["client"]["token"].decode())
    assert (client.tenants, client.roles) == (frozenset({"shop"}), frozenset({Role.WRITER}))
    for service, role in (("trainer", Role.WRITER), ("generation", Role.READER)):
        principal = tokens.principal(secrets[f"{service}-registry-token"]["token"].decode())
        assert (principal.name, principal.tenants) == (service, None)
        assert principal.roles == {role, Role.DELEGATE}


class Pod:
    """The mounted secrets of a container in a folder, and its variables with paths in that folder."""

    def __init__(self, found: Container, secrets: Secrets, folder: Path) -> None:
        self.folder = folder
        for path, (name, key) in files(found.pod, found.spec).items():
            for one in secrets[name] if key == "*" else [key]:
                target = folder / path.replace("*", one).lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(secrets[name][one])
        rendered = found.where.split(":")[0]
        self.environment = {
            variable: self._value(value, secrets) for variable, value in environment(rendered, found.spec).items()
        }

    def _value(self, value: str, secrets: Secrets) -> str:
        if value.startswith("secret:"):
            name, key = value.removeprefix("secret:").split("/")
            return secrets[name][key].decode()
        return str(self.folder / value.lstrip("/")) if value.startswith("/") else value


@pytest.fixture(scope="module")
def pods(secrets: Secrets, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pod]:
    return {
        found.spec["name"]: Pod(found, secrets, tmp_path_factory.mktemp(found.spec["name"]))
        for found in containers(FULL)
    }


@pytest.fixture(scope="module")
def store_port(pods: dict[str, Pod], minio_binary: Path) -> Iterator[int]:
    """MinIO as base/minio.yaml starts it, except for port and folders."""
    pod, port = pods["minio"], free_port()
    (spec,) = (found.spec for found in containers("base") if found.spec["name"] == "minio")
    places = {":9000": f"127.0.0.1:{port}", "/data": str(pod.folder / "data")}
    places["/etc/minio/certs"] = str(pod.folder / "etc/minio/certs")
    with (pod.folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [minio_binary, *(places.get(argument, argument) for argument in spec["args"])],
            env={**os.environ, **pod.environment},
            stdout=log,
            stderr=log,
        )
    try:
        yield port
    finally:
        server.kill()
        server.wait()


def test_bucket_is_made_and_registry_serves_with_these_secrets(
    pods: dict[str, Pod], store_port: int, secrets: Secrets, tmp_path: Path
) -> None:
    bucket, registry = pods["make-bucket"], pods["registry"]
    endpoint = {"PSEUDOWORD_S3__ENDPOINT": f"localhost:{store_port}"}
    for _ in range(2):  # the second time the bucket exists
        done = make_bucket(bucket.environment | endpoint)
        assert done.returncode == 0, done.stderr

    health = f"127.0.0.1:{free_port()}"
    ports = {"PSEUDOWORD_SERVER__HEALTH_LISTEN": health, "PSEUDOWORD_SERVER__METRICS_LISTEN": "127.0.0.1:0"}
    with Process("registry", tmp_path, environment=registry.environment | endpoint | ports) as server:
        for probe in ("startup", "readiness", "liveness"):
            with grpc.insecure_channel(health) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                answer = stub.Check(health_pb2.HealthCheckRequest(service=probe))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, probe
        ca = tmp_path / "ca.crt"
        ca.write_bytes(secrets["client"]["ca.crt"])
        token = secrets["client"]["token"].decode()
        with Client(Endpoints(registry=server.address, ca=ca, token=token), tenant="shop") as client:
            assert list(client.words()) == []
        for wrong, tenant, reason in (("nobody", "shop", "TOKEN_UNKNOWN"), (token, "other", "TENANT_DENIED")):
            with Client(Endpoints(registry=server.address, ca=ca, token=wrong), tenant=tenant) as client:
                with pytest.raises(PseudowordError) as failure:
                    list(client.words())
                assert failure.value.reason == reason
        assert server.terminate() == 0, server.log_end()

    # The CronJob's command, with $(VARIABLES) put in as Kubernetes does.
    (spec,) = (found.spec for found in containers(FULL) if found.spec["name"] == "gc")
    variables = pods["gc"].environment | endpoint
    command = [re.sub(r"\$\((\w+)\)", lambda name: variables[name[1]], part) for part in spec["command"]]
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([program, *command[1:]], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["seen"] == 0


@pytest.fixture
def nats_address(nats_binary: Path, secrets: Secrets, tmp_path: Path) -> Iterator[str]:
    """NATS as components/workers starts it, except for ports and folders."""
    (found,) = (one for one in containers("tests/workers") if one.spec["name"] == "nats")
    pod, address = Pod(found, secrets, tmp_path / "nats"), f"localhost:{free_port()}"
    (config,) = (
        item["data"]["nats.conf"]
        for item in of_kind(render("tests/workers"), "ConfigMap")
        if item["metadata"]["name"].startswith("nats-config")
    )
    places = {"0.0.0.0:4222": address, "0.0.0.0:8222": f"localhost:{free_port()}"}
    places |= {place: str(pod.folder / place[1:]) for place in ("/data", "/etc/nats/certs")}
    for place, other in places.items():
        assert place in config
        config = config.replace(place, other)
    file = tmp_path / "nats.conf"
    file.write_text(config)
    with (tmp_path / "nats.log").open("wb") as log:
        server = subprocess.Popen([nats_binary, "--config", file], env=pod.environment, stdout=log, stderr=log)
    try:
        yield address
    finally:
        server.kill()
        server.wait()


async def test_nats_accepts_only_the_token_of_the_worker(secrets: Secrets, tmp_path: Path, nats_address: str) -> None:
    (found,) = (one for one in containers("tests/workers") if one.spec["name"] == "worker")
    worker = Pod(found, secrets, tmp_path / "worker")
    ca, token = (Path(worker.environment[f"PSEUDOWORD_NATS__{name}"]) for name in ("CA", "TOKEN_FILE"))
    stranger = tmp_path / "token"
    stranger.write_text("stranger")
    for file, accepted in ((token, True), (stranger, False)):
        settings = NatsSettings(servers=f"tls://{nats_address}", ca=ca, token_file=file)
        broker = Broker(settings, ack_wait=timedelta(seconds=1))
        broker.open()
        try:
            async with asyncio.timeout(30 if accepted else 2):
                await broker.connected()
            assert accepted
            assert await broker.sent() == set()
        except TimeoutError:
            assert not accepted, (tmp_path / "nats.log").read_text()
        finally:
            await broker.close()


@pytest.mark.slow
def test_word_is_learned_and_drawn_with_the_settings_of_the_manifests(
    pods: dict[str, Pod], store_port: int, secrets: Secrets, tmp_path: Path
) -> None:
    """TLS everywhere, tokens, delegates, one bucket: all three servers with the settings of base/."""
    endpoint = {"PSEUDOWORD_S3__ENDPOINT": f"localhost:{store_port}"}
    assert make_bucket(pods["make-bucket"].environment | endpoint).returncode == 0
    here = endpoint | {
        "PSEUDOWORD_SERVER__HEALTH_LISTEN": "127.0.0.1:0",
        "PSEUDOWORD_SERVER__METRICS_LISTEN": "127.0.0.1:0",
        "GOMP_SPINCOUNT": "10000",  # as in the images: waiting threads of OpenMP spin for a short time only
    }
    ca = tmp_path / "ca.crt"
    ca.write_bytes(secrets["client"]["ca.crt"])
    with Process("registry", tmp_path, environment=pods["registry"].environment | here) as registry:
        peer = {"PSEUDOWORD_REGISTRY__ADDRESS": registry.address}
        with (
            Process("trainer", tmp_path, environment=pods["trainer"].environment | here | peer) as trainer,
            Process("service", tmp_path, environment=pods["generation"].environment | here | peer) as generation,
        ):
            endpoints = Endpoints(
                registry=registry.address,
                trainer=trainer.address,
                generation=generation.address,
                ca=ca,
                token=secrets["client"]["token"].decode(),
            )
            with Client(endpoints, tenant="shop") as client:
                version = client.learn("rex", sorted((ROOT / "examples" / "rex").glob("*.png")), start="toy")
                assert version.name == "tenants/shop/concepts/rex/versions/1"
                assert version.creator == "client"
                (picture,) = client.draw("a photo of <rex> on the beach", steps=4)
                assert picture.info.record.words[0].version == version.name
                settings = resources_pb2.PictureSettings(prompt="<rex>", steps=4)
                *_, batch = client.watch_batch(client.create_batch(resources_pb2.Batch(settings=settings)).name)
                assert batch.manifest_uri.startswith("s3://pseudoword/batches/batches/shop/")


def test_make_bucket_reports_a_refusal_without_the_secret(pods: dict[str, Pod], store_port: int) -> None:
    wrong = {"PSEUDOWORD_S3__ENDPOINT": f"localhost:{store_port}", "PSEUDOWORD_S3__SECRET_KEY": "not-the-secret"}
    done = make_bucket(pods["make-bucket"].environment | wrong)
    assert done.returncode == 1
    assert "make_bucket: S3 operation failed" in done.stderr
    assert "Traceback" not in done.stderr and "not-the-secret" not in done.stderr


def make_bucket(variables: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    script = DEPLOY / "base" / "make_bucket.py"
    return subprocess.run(
        [sys.executable, script], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
