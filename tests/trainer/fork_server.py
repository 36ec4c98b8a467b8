"""Trainer processes without the cost of the imports: forks of a process that has imported everything and run nothing.

Importing torch and diffusers takes longer than the tests of several workers do. Each fork is a process of its own, runs
`python -m trainer ARGUMENTS`, and can be killed without an effect on the others.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from tests.conftest import ROOT
from tests.processes import Process

_START_S = 170.0


class ForkServer:
    """with ForkServer() as fork_server:
    ForkedProcess(fork_server, "trainer", tmp_path, "worker", "--store.address", ...).start()
    """

    def __enter__(self) -> Self:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PSEUDOWORD_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=clean,
            cwd=ROOT,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def fork(self, arguments: list[str], log: Path) -> int:
        """The id of a new process that runs `python -m trainer ARGUMENTS` and writes to `log`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([arguments, str(log)]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


class ForkedProcess(Process):
    """A Process that is forked from a ForkServer."""

    def __init__(self, fork_server: ForkServer, name: str, folder: Path, *arguments: str) -> None:
        super().__init__(name, folder)
        self._fork_server = fork_server
        self._trainer_arguments = [
            *arguments,
            "--server.address-file",
            str(self._file),
            "--server.listen",
            "127.0.0.1:0",
        ]
        self._pid = 0

    def __exit__(self, *_: object) -> None:
        if self._pid:
            self.kill()

    def start(self) -> None:
        self._file.unlink(missing_ok=True)
        self._pid = self._fork_server.fork(self._trainer_arguments, self.log)
        end = time.monotonic() + _START_S
        while not self._file.exists():
            assert self._alive(), f"{self.module} ended:\n{self.log_end()}"
            assert time.monotonic() < end, f"{self.module} is not ready:\n{self.log_end()}"
            time.sleep(0.05)
        addresses = json.loads(self._file.read_text())
        self.address, self.metrics_address = addresses["grpc"], addresses["metrics"]

    def signal(self, number: int) -> None:
        os.kill(self._pid, number)

    def kill(self) -> None:
        if self._alive():
            self.signal(signal.SIGKILL)
        while self._alive():
            time.sleep(0.01)
        self._pid = 0

    def _alive(self) -> bool:
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return False
        return self._pid != 0


def main() -> None:
    """For each line of stdin: forks a trainer, and prints its process id."""
    import trainer.app
    import trainer.learned.command
    import trainer.queue.dispatcher
    import trainer.queue.hints
    import trainer.queue.jetstream_queue  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no parent waits for a child: the kernel reaps it
    for line in sys.stdin:
        arguments, log = json.loads(line)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for new, old in ((nothing, 0), (to, 1), (to, 2)):
                os.dup2(new, old)
            sys.argv = ["trainer", *arguments]
            try:
                runpy.run_module("trainer", run_name="__main__")
            finally:
                sys.stderr.flush()
            os._exit(0)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
