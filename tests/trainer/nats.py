"""A real nats-server for the trainer's queue, which can be killed and started again."""

import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import free_port

_START_S = 30.0


class Nats:
    """`nats-server` with JetStream on a free port of loopback, with its store and its log in a folder. It can be
    killed, and started again on its store."""

    def __init__(self, binary: Path, folder: Path) -> None:
        self._log = folder / "log"
        self._port = free_port()
        self.url = f"nats://127.0.0.1:{self._port}"
        store = ["-js", "-sd", str(folder / "store")]
        self._command = [str(binary), "-a", "127.0.0.1", "-p", str(self._port), *store]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it responds."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        end = time.monotonic() + _START_S
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=1) as connection:
                    if connection.recv(4) == b"INFO":
                        return
            except OSError:  # not listening yet
                pass
            if self._process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"nats-server did not start:\n{self._log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Sends SIGKILL; no effect if it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
