"""Reads A1111's .pt and other files of torch.save in a child process; nothing is unpickled in this process."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE

from registry.unpickle import REFUSED
from rpc.errors import FailedPrecondition, InvalidArgument, Unavailable
from storage.tensors import MAX_FILE_BYTES, Vectors, read_tensors

_TIMEOUT_S = 20.0
_MAX_CONCURRENT = 2


class Pickles:
    """Reads files of torch.save, if `allowed`; at most two at a time."""

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT)

    async def read(self, data: bytes) -> dict[str, Vectors]:
        """The tensors by name. Raises FailedPrecondition (PICKLES_OFF), InvalidArgument (PICKLE_REFUSED), Unavailable,
        and TensorsInvalid for tensors that cannot be a word's vectors."""
        if not self._allowed:
            raise FailedPrecondition(
                "the file is a pickle, and import of pickles is switched off: export the word as safetensors, or have "
                "the server's setting import_pickles switched on",
                reason="PICKLES_OFF",
            )
        if len(data) > MAX_FILE_BYTES:
            raise _refused(f"it has {len(data)} bytes; at most {MAX_FILE_BYTES} are allowed")
        async with self._slots:
            status, answer, why = await self._child(data)
        if status == REFUSED:
            raise _refused(why.decode(errors="replace")[:300])
        if status != 0:
            # The child exceeded a limit: memory, time, or a forbidden system call.
            raise _refused("reading it exceeds the limits for an embedding")
        return await asyncio.to_thread(read_tensors, answer)

    async def _child(self, data: bytes) -> tuple[int, bytes, bytes]:
        # Nothing of this process's environment is passed on, because it contains secrets.
        environment = {"OPENBLAS_NUM_THREADS": "1", "PATH": os.defpath}
        command = (sys.executable, "-I", "-m", "registry.unpickle")
        child = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                answer, why = await child.communicate(data)
        except TimeoutError:
            raise Unavailable(
                f"the file was not read within {_TIMEOUT_S:g} s; try again", reason="PICKLE_TIMEOUT"
            ) from None
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        assert child.returncode is not None
        return child.returncode, answer, why


def _refused(why: str) -> InvalidArgument:
    return InvalidArgument(f"the file cannot be used: {why}", reason="PICKLE_REFUSED", violations=[("data", why)])
