"""Start, drain, metrics and settings of a server."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from pseudoword.errors import PseudowordError
from pseudoword.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from pydantic import BaseModel, Field

from rpc.settings import ServerSettings, Settings, SettingsError
from tests.conftest import free_port
from tests.rpc.conftest import SERVICE, Running, Serve, eventually, health

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_health_follows_readiness(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "address.json"
    running = await serve(address_file=file, metrics_listen="127.0.0.1:0")
    names = ("", SERVICE, "startup", "readiness")
    assert await health(await running.channel(), *names, "liveness") == [NOT_SERVING] * 4 + [SERVING]
    assert not file.exists()
    running.server.mark_ready()
    await eventually(lambda: asyncio.to_thread(file.exists))
    assert await health(await running.channel(), *names, "liveness") == [SERVING] * 5
    addresses = json.loads(file.read_text())
    assert addresses == {
        "grpc": f"127.0.0.1:{running.server.port}",
        "metrics": f"127.0.0.1:{running.server.metrics_port}",
    }


async def test_sigterm_drains_a_running_stream(serve: Serve, tmp_path: Path) -> None:
    running = await serve(address_file=tmp_path / "address.json")
    running.server.mark_ready()
    drained: list[list[int]] = []

    async def drain() -> None:
        drained.append(await health(await running.channel(), "readiness", SERVICE, "liveness"))
        running.toy.steps.put_nowait(True)
        running.toy.steps.put_nowait(False)

    # A health watch never ends by itself, and must not delay the drain.
    stub: Any = health_pb2_grpc.HealthStub(await running.channel())
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=""))
    await watch.read()
    life = asyncio.create_task(running.server.run_until_signalled(drain))
    call = (await running.stub()).WatchJob(trainer_pb2.WatchJobRequest())
    await running.toy.watching.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    assert len([event async for event in call]) == 1
    assert await call.code() is grpc.StatusCode.OK
    async with asyncio.timeout(5):  # drain_s is 10: the drain did not wait for the watch
        await life
    assert drained == [[NOT_SERVING, NOT_SERVING, SERVING]]
    assert not (tmp_path / "address.json").exists()


async def test_stream_is_cancelled_after_the_drain_time(serve: Serve) -> None:
    running = await serve(drain_s=0.2)
    call = (await running.stub()).WatchJob(trainer_pb2.WatchJobRequest())
    await running.toy.watching.wait()
    await running.server.stop()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert PseudowordError.from_call(raised.value).reason == "SERVER_STOPPING"
    assert running.toy.closed.is_set()


async def test_second_signal_ends_the_drain(serve: Serve) -> None:
    running = await serve(drain_s=1000)
    draining = asyncio.Event()

    async def drain() -> None:
        draining.set()
        await asyncio.Event().wait()

    life = asyncio.create_task(running.server.run_until_signalled(drain))
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGINT)
    await draining.wait()
    os.kill(os.getpid(), signal.SIGINT)
    async with asyncio.timeout(10):
        await life


async def test_cancelled_call_ends_its_handler(serve: Serve) -> None:
    running = await serve(metrics_listen="127.0.0.1:0")
    call = (await running.stub()).WatchJob(trainer_pb2.WatchJobRequest())
    await running.toy.watching.wait()
    call.cancel()
    await running.toy.closed.wait()
    await ended(running, "CANCELLED")


async def test_deadline_is_counted_as_deadline_exceeded(serve: Serve) -> None:
    running = await serve(metrics_listen="127.0.0.1:0")
    call = (await running.stub()).WatchJob(trainer_pb2.WatchJobRequest(), timeout=0.2)
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await ended(running, "DEADLINE_EXCEEDED")


async def sample(running: Running, name: str, **labels: str) -> float | None:
    def scrape() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{running.server.metrics_port}/metrics") as answer:
            return str(answer.read().decode())

    for family in text_string_to_metric_families(await asyncio.to_thread(scrape)):
        for found in family.samples:
            if found.name == name and labels.items() <= found.labels.items():
                return found.value
    return None


async def ended(running: Running, code: str) -> None:
    async def counted() -> bool:
        return await sample(running, "grpc_server_handled_total", grpc_code=code) == 1

    await eventually(counted)


async def test_metrics_have_the_names_of_the_dashboards(serve: Serve) -> None:
    running = await serve(metrics_listen="127.0.0.1:0")
    stub = await running.stub()
    await stub.UploadPicture(iter([trainer_pb2.UploadPictureRequest() for _ in range(3)]))
    labels = {"grpc_type": "client_stream", "grpc_service": SERVICE, "grpc_method": "UploadPicture"}
    assert await sample(running, "grpc_server_started_total", **labels) == 1
    assert await sample(running, "grpc_server_handled_total", grpc_code="OK", **labels) == 1
    assert await sample(running, "grpc_server_handling_seconds_count", **labels) == 1
    assert await sample(running, "grpc_server_msg_received_total", **labels) == 3
    assert await sample(running, "grpc_server_msg_sent_total", **labels) == 1


async def test_plaintext_port_for_probes_serves_health_only(serve: Serve) -> None:
    address = f"127.0.0.1:{free_port()}"
    await serve(health_listen=address)
    async with grpc.aio.insecure_channel(address) as opened:
        assert await health(opened, "startup") == [NOT_SERVING]
        stub: Any = trainer_pb2_grpc.TrainerServiceStub(opened)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.GetPicture(trainer_pb2.GetPictureRequest())
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_occupied_addresses_are_settings_errors(serve: Serve) -> None:
    running = await serve(metrics_listen="127.0.0.1:0")
    with pytest.raises(SettingsError, match="cannot listen on"):
        await serve(listen=running.server.address)
    with pytest.raises(SettingsError, match="metrics cannot be served"):
        await serve(metrics_listen=f"127.0.0.1:{running.server.metrics_port}")


class _Peer(BaseModel):
    address: str = "127.0.0.1:1"
    token_file: Path | None = None


class _Toy(Settings):
    data: Path = Field(description="the folder of the data")
    server: ServerSettings = ServerSettings(listen="127.0.0.1:7361")
    registry: _Peer = _Peer()


def test_command_line_overrides_environment_overrides_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PSEUDOWORD_SERVER__LOG_LEVEL": "debug",
        "PSEUDOWORD_SERVER__DRAIN_S": "5",
        "PSEUDOWORD_REGISTRY": "127.0.0.1:9",  # the variable of the clients
        "PSEUDOWORD_REGISTRY__TOKEN_FILE": "/t",
    }.items():
        monkeypatch.setenv(name, value)
    settings = _Toy.load("toy", ["--data", "/d", "--server.drain-s", "6"])
    assert settings.server == ServerSettings(listen="127.0.0.1:7361", log_level="debug", drain_s=6)
    assert (settings.data, settings.registry) == (Path("/d"), _Peer(address="127.0.0.1:9", token_file=Path("/t")))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "data: Field required"),
        (["--data", "/d", "--server.drain-s", "soon"], r"server\.drain_s: .*valid number"),
        (["--data", "/d", "--server.tls-cert", "/c"], "tls_cert and tls_key must be set together"),
    ],
)
def test_invalid_settings_are_named(arguments: list[str], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        _Toy.load("toy", arguments)


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        _Toy.load("toy", ["--help"])
    printed: Any = capsys.readouterr().out
    assert raised.value.code == 0
    for name in ServerSettings.model_fields:
        assert f"--server.{name.replace('_', '-')}" in printed


def test_logs_are_json_without_local_variables() -> None:
    program = """
import asyncio, logging
from rpc import logs
from rpc.errors import ErrorTable
logs.configure("toy", "info", "json")
def fail(token): raise RuntimeError("broken")
try: fail("s3cret-value")
except RuntimeError as error: ErrorTable({}).translate(error)
logging.getLogger("asyncio").warning("from a library")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, second = (json.loads(line) for line in done.stderr.splitlines())
    assert (first["server"], first["level"], first["event"]) == ("toy", "error", "unhandled exception")
    assert first["exception"][0]["exc_value"] == "broken"
    assert "s3cret-value" not in done.stderr.replace('fail("s3cret-value")', "")
    assert (second["logger"], second["event"], done.stdout) == ("asyncio", "from a library", "")
