"""Server processes for benchmarks, started as an operator starts them: `pseudoword up` has settings for servers that
share the cores of one machine, which would slow them down here."""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import click
from pseudoword.channel import Endpoints

_START_S = 180.0


def drawing(stack: ExitStack, folder: Path, *, model: str | None, device: str) -> tuple[Endpoints, Endpoints]:
    """A registry with our Generation server, and with a server that batches whole requests. They stop with `stack`."""
    registry = _start(stack, folder, "registry", "--store.address", str(folder / "store"))
    arguments = _arguments(registry, model, device)
    # One after the other, so that neither measures its step times while the other is starting.
    ours, whole = (
        _start(stack, folder, module, *arguments) for module in ("service", "benchmarks.generation.request_level")
    )
    return Endpoints(registry=registry, generation=ours), Endpoints(registry=registry, generation=whole)


def learning(stack: ExitStack, folder: Path, *, model: str | None, device: str) -> Endpoints:
    """A registry with our trainer. They stop with `stack`."""
    registry = _start(stack, folder, "registry", "--store.address", str(folder / "store"))
    trainer = _start(
        stack, folder, "trainer", *_arguments(registry, model, device), "--store.address", str(folder / "jobs")
    )
    return Endpoints(registry=registry, trainer=trainer)


def _arguments(registry: str, model: str | None, device: str) -> list[str]:
    source = [] if model is None else ["--model.source", model]
    return ["--registry.address", registry, "--model.device", device, *source]


def _start(stack: ExitStack, folder: Path, module: str, *arguments: str) -> str:
    """The address of `python -m MODULE`; returns when the server is ready."""
    file, log = folder / f"{module}.json", folder / f"{module}.log"
    command = [sys.executable, "-m", module, *arguments, "--server.listen", "127.0.0.1:0"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PSEUDOWORD_")}
    process = subprocess.Popen(
        [*command, "--server.address-file", str(file)],
        stdout=stack.enter_context(log.open("wb")),
        stderr=subprocess.STDOUT,
        env=kept,
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    end = time.monotonic() + _START_S
    while not file.exists():
        if process.poll() is not None or time.monotonic() > end:
            raise click.ClickException(f"{module} did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)
    address: str = json.loads(file.read_text())["grpc"]
    return address
