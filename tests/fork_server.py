"""Server processes without the cost of the imports: forks of a process that has imported everything and run nothing.

Importing torch and diffusers takes longer than most tests of a trainer or of Generation. Each fork is a process of its
own, runs `python -m MODULE ARGUMENTS`, and can be killed without an effect on the others.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parent.parent
_POLL_INTERVAL_S = 0.01


class Forked:
    """A process that a ForkServer has forked; a `subprocess.Popen` as far as tests need one."""

    def __init__(self, pid: int, status_file: Path) -> None:
        self.pid = pid
        self._status_file = status_file

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return int(self._status_file.read_text()) if self._status_file.exists() else None

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if timeout is not None and end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(_POLL_INTERVAL_S)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """with ForkServer() as fork_server:
    forked = fork_server.fork("trainer", ["worker", "--store.address", ...], environment, log=tmp_path / "log")
    """

    def __enter__(self) -> Self:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PSEUDOWORD_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server"],
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

    def fork(self, module: str, arguments: list[str], environment: Mapping[str, str], *, log: Path) -> Forked:
        """Runs `python -m MODULE ARGUMENTS` in a new process that appends its output to `log`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        status_file = log.with_name(f"{log.name}.{time.monotonic_ns()}.status")
        request = [module, arguments, dict(environment), str(log), str(status_file)]
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Forked(int(self._process.stdout.readline()), status_file)


def main() -> None:
    """For each line of stdin: forks a process, and prints its id. Writes the exit status of each process to a file."""
    import trainer.app
    import trainer.queue.dispatcher
    import trainer.queue.hints
    import trainer.queue.jetstream_queue  # noqa: F401

    status_files: dict[int, Path] = {}

    def reap(*_: object) -> None:
        while status_files:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            file = status_files.pop(pid)
            written = file.with_suffix(".tmp")
            written.write_text(str(os.waitstatus_to_exitcode(status)))
            written.rename(file)

    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        module, arguments, environment, log, status_file = json.loads(line)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        child = os.fork()
        if child:
            status_files[child] = Path(status_file)
        else:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        if child == 0:
            _run(module, arguments, environment, log)
            return
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


def _run(module: str, arguments: list[str], environment: Mapping[str, str], log: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for new, old in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(new, old)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    main()
