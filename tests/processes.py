"""Servers as processes, started and stopped as an operator does it."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.conftest import free_port
from tests.fork_server import Forked, ForkServer

_START_S = 120.0
_STOP_S = 60.0


class Process:
    """`python -m MODULE ARGUMENTS` on loopback; its log is `<folder>/<name>.log`, `name` being the module unless given.

    with Process("registry", tmp_path, "--store.address", "...") as registry:
        registry.address

    With a fork server it starts as a fork, without the seconds that importing torch takes.
    """

    def __init__(
        self,
        module: str,
        folder: Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        name: str | None = None,
        fork_server: ForkServer | None = None,
    ) -> None:
        self.name = name or module
        self.log = folder / f"{self.name}.log"
        self._module = module
        self._fork_server = fork_server
        self._file = folder / f"{self.name}.json"
        listen = f"127.0.0.1:{free_port()}"
        self._arguments = [*arguments, "--server.address-file", str(self._file), "--server.listen", listen]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PSEUDOWORD_")}
        self._environment = clean | dict(environment or {})
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self.address = ""
        self.metrics_address = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def start(self) -> None:
        """Returns when the server is ready. It listens on one and the same port at each start."""
        self._file.unlink(missing_ok=True)
        self._process = self._spawn()
        end = time.monotonic() + _START_S
        while not self._file.exists():
            assert self._process.poll() is None, f"{self.name} ended:\n{self.log_end()}"
            assert time.monotonic() < end, f"{self.name} is not ready:\n{self.log_end()}"
            time.sleep(0.05)
        addresses = json.loads(self._file.read_text())
        self.address, self.metrics_address = addresses["grpc"], addresses["metrics"]

    def _spawn(self) -> "subprocess.Popen[bytes] | Forked":
        if self._fork_server is not None:
            return self._fork_server.fork(self._module, self._arguments, self._environment, log=self.log)
        command = [sys.executable, "-m", self._module, *self._arguments]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)

    def metric(self, name: str) -> float:
        """The value of a metric without labels, from the metrics endpoint."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        (value,) = (line.split()[1] for line in lines if line.startswith(f"{name} "))
        return float(value)

    def threads(self) -> int:
        """The number of threads of the process."""
        assert self._process is not None
        return len(list(Path(f"/proc/{self._process.pid}/task").iterdir()))

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Sends SIGKILL and waits for the end: the process cannot clean up."""
        self.signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> int:
        """Sends SIGTERM, on which the server drains. Returns the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def wait(self) -> int:
        assert self._process is not None
        return self._process.wait(_STOP_S)

    def log_end(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]
