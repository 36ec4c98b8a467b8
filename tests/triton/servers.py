"""A real Triton Inference Server as a process."""

import os
import secrets
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Self

import grpc

from tests.conftest import free_port

_START_S = 300.0
TLS = Path(__file__).parents[1] / "rpc" / "tls"


class Triton:
    """`tritonserver` on loopback with a model repository; it keeps its port across restarts.

    With `tls` it uses the certificate of the tests, and requires it from clients.
    """

    def __init__(self, binary: Path, repository: Path, folder: Path, *, tls: bool = False) -> None:
        self.log = folder / "triton.log"
        self._port, self._metrics_port = free_port(), free_port()
        self._tls = tls
        # Its shared memory outlives a SIGKILL, so it gets a name by which it is removed.
        self._region = f"pseudoword-test-{secrets.token_hex(4)}-"
        self._command = [
            str(binary),
            f"--model-repository={repository}",
            *("--grpc-address=127.0.0.1", f"--grpc-port={self._port}", "--allow-http=false"),
            *("--metrics-address=127.0.0.1", f"--metrics-port={self._metrics_port}"),
            f"--backend-config=python,shm-region-prefix-name={self._region}",
        ]
        if tls:
            self._command += [
                *("--grpc-use-ssl=true", "--grpc-use-ssl-mutual=true", f"--grpc-root-cert={TLS / 'cert.pem'}"),
                *(f"--grpc-server-cert={TLS / 'cert.pem'}", f"--grpc-server-key={TLS / 'key.pem'}"),
            ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for left in Path("/dev/shm").glob(f"{self._region}*"):  # noqa: S108 where Linux has it, and not a place we choose
            left.unlink(missing_ok=True)

    def start(self) -> None:
        """Returns when the models are loaded."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True
            )
        end = time.monotonic() + _START_S
        # Triton opens its port when all models are loaded, and ends if a model cannot be loaded.
        while not self._listens():
            assert self._process.poll() is None, f"Triton ended:\n{self.log_end()}"
            assert time.monotonic() < end, f"Triton is not ready:\n{self.log_end()}"

    def kill(self) -> None:
        """Sends SIGKILL, to its backend too."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def counter(self, name: str, model: str) -> int:
        """A counter of Triton's metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        line = next(line for line in lines if line.startswith(f'{name}{{model="{model}"'))
        return int(float(line.split()[-1]))

    def log_end(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def _listens(self) -> bool:
        if self._tls:
            cert, key = ((TLS / name).read_bytes() for name in ("cert.pem", "key.pem"))
            channel = grpc.secure_channel(self.address, grpc.ssl_channel_credentials(cert, key, cert))
        else:
            channel = grpc.insecure_channel(self.address)
        with channel:
            try:
                grpc.channel_ready_future(channel).result(0.5)
            except grpc.FutureTimeoutError:
                return False
            return True
