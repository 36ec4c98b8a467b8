"""The three servers as child processes on loopback, with default settings."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Self

from pseudoword.channel import Endpoints

_MODULES = {"registry": "registry", "trainer": "trainer", "generation": "service"}
_START_S = 180.0
_DRAIN_S = 30.0
_POLL_S = 0.05


class ServerDied(Exception):
    """A server ended by itself, or did not become ready; the message names it and has the end of its log."""


class Servers:
    """Registry, trainer and generation, started together and stopped together.

        with Servers(data) as servers:
            Client(servers.endpoints)

    `data` holds all persistent data: `store/` (words), `jobs/` (the trainer's log and pictures), `batches/` (pictures
    of batches), `logs/`; and `views/`, which may be deleted. With `port` 0 the servers take free ports, else `port` and
    the next two.
    """

    def __init__(self, data: Path, *, model: str | None = None, port: int = 0) -> None:
        self._data = data
        self._model = model
        self._port = port
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logs = ExitStack()
        self.metrics: Mapping[str, str] = {}
        self.endpoints = Endpoints()

    def __enter__(self) -> Self:
        try:
            for folder in ("store", "jobs", "batches", "logs", "run", "views"):
                (self._data / folder).mkdir(parents=True, exist_ok=True)
            # The registry starts first: the two others need its address.
            self._start("registry", ["--store.address", str(self._data / "store")])
            registry = self._wait("registry")
            peers = ["--registry.address", registry["grpc"]]
            model = [] if self._model is None else ["--model.source", self._model]
            self._start("trainer", ["--store.address", str(self._data / "jobs"), *peers, *model])
            self._start("generation", ["--store.address", str(self._data / "batches"), *peers, *model])
            trainer, generation = self._wait("trainer"), self._wait("generation")
        except BaseException:
            self.stop()
            raise
        self.endpoints = Endpoints(registry=registry["grpc"], trainer=trainer["grpc"], generation=generation["grpc"])
        self.metrics = {
            "registry": registry["metrics"],
            "trainer": trainer["metrics"],
            "generation": generation["metrics"],
        }
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def check(self) -> None:
        """Raises ServerDied when one of the servers has ended."""
        for name, process in self._processes.items():
            status = process.poll()
            if status is not None:
                raise ServerDied(f"the {name} server ended with status {status}:\n{self._log_end(name)}")

    def stop(self) -> None:
        """Send SIGTERM to all servers, so that they drain, and SIGKILL to those that still run after 30 s."""
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        ends = time.monotonic() + _DRAIN_S
        for process in self._processes.values():
            try:
                process.wait(max(0.1, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        self._logs.close()

    def _start(self, name: str, arguments: Sequence[str]) -> None:
        number = list(_MODULES).index(name)
        address_file = self._data / "run" / f"{name}.json"
        address_file.unlink(missing_ok=True)
        listen = f"127.0.0.1:{self._port + number if self._port else 0}"
        command = [
            sys.executable,
            "-m",
            _MODULES[name],
            *arguments,
            *("--server.listen", listen, "--server.address-file", str(address_file)),
        ]
        log: IO[bytes] = self._logs.enter_context((self._data / "logs" / f"{name}.jsonl").open("ab"))
        # A process group of its own: Ctrl-C reaches only this process, which then stops the servers in order.
        self._processes[name] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
            env=_environment(),
        )

    def _wait(self, name: str) -> Mapping[str, str]:
        """Wait until a server is ready. Returns its addresses."""
        address_file = self._data / "run" / f"{name}.json"
        ends = time.monotonic() + _START_S
        while not address_file.exists():
            self.check()
            if time.monotonic() > ends:
                raise ServerDied(f"the {name} server is not ready after {_START_S:.0f} s:\n{self._log_end(name)}")
            time.sleep(_POLL_S)
        addresses: dict[str, str] = json.loads(address_file.read_text())
        return addresses

    def _log_end(self, name: str, lines: int = 15) -> str:
        log = self._data / "logs" / f"{name}.jsonl"
        return "\n".join(["  " + line for line in log.read_text(errors="replace").splitlines()[-lines:]])


def _environment() -> Mapping[str, str]:
    """The environment without the client's own variables, which would be read as the servers' settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PSEUDOWORD_")}
    # Trainer and Generation compute on the same processors, each with threads for half of them. With more threads than
    # processors, a waiting thread blocks a computing one by spinning, or is slow to wake up from sleep.
    threads = max(1, (os.cpu_count() or 1) // 2)
    return {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "10000"} | kept | {"PYTHONUNBUFFERED": "1"}
