"""Servers as processes, started and stopped as an operator would."""

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

_START_S = 120.0
_STOP_S = 60.0


class Process:
    """`python -m MODULE ARGUMENTS` on loopback; its log is `<folder>/<module>.log`.

    with Process("registry", tmp_path, "--store.address", "...") as registry:
        registry.address
    """

    def __init__(
        self, module: str, folder: Path, *arguments: str, environment: Mapping[str, str] | None = None, port: int = 0
    ) -> None:
        self.module = module
        self.log = folder / f"{module}.log"
        self._file = folder / f"{module}.json"
        self._port = port
        self._arguments = ["--server.address-file", str(self._file), *arguments]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PSEUDOWORD_")}
        self._environment = clean | dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
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
        """Returns once the server is ready; a second time it listens where it did before."""
        self._file.unlink(missing_ok=True)
        command = [sys.executable, "-m", self.module, "--server.listen", f"127.0.0.1:{self._port}", *self._arguments]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)
        end = time.monotonic() + _START_S
        while not self._file.exists():
            assert self._process.poll() is None, f"{self.module} ended:\n{self.log_end()}"
            assert time.monotonic() < end, f"{self.module} is not ready:\n{self.log_end()}"
            time.sleep(0.05)
        addresses = json.loads(self._file.read_text())
        self.address, self.metrics_address = addresses["grpc"], addresses["metrics"]
        self._port = int(self.address.rpartition(":")[2])

    def metric(self, name: str) -> float:
        """A metric without labels, as Prometheus sees it."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        (value,) = (line.split()[1] for line in lines if line.startswith(f"{name} "))
        return float(value)

    def threads(self) -> int:
        """How many threads the process has."""
        assert self._process is not None
        return len(list(Path(f"/proc/{self._process.pid}/task").iterdir()))

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: no chance to tidy up."""
        self.signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> int:
        """SIGTERM: drains. Returns the exit status."""
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
