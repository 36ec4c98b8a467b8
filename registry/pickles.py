"""A1111's .pt and its like, read by a child process; nothing is unpickled in this one."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE

from registry.unpickle import REFUSED
from rpc.errors import FailedPrecondition, InvalidArgument, Unavailable
from storage.tensors import MAX_FILE_BYTES, Vectors, read_tensors

_TIMEOUT_S = 20.0
_AT_ONCE = 2


class Pickles:
    """Reads files that torch.save wrote, if that is `allowed`; two at a time."""

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed
        self._gate = asyncio.Semaphore(_AT_ONCE)

    async def read(self, data: bytes) -> dict[str, Vectors]:
        """The tensors by name. Raises FailedPrecondition (PICKLES_OFF), InvalidArgument (PICKLE_REFUSED), Unavailable,
        and TensorsInvalid for what no word can be."""
        if not self._allowed:
            raise FailedPrecondition(
                "the file is a pickle, and this server reads none: export the word as safetensors, or switch "
                "import_pickles on",
                reason="PICKLES_OFF",
            )
        if len(data) > MAX_FILE_BYTES:
            raise _refused(f"it has {len(data)} bytes; {MAX_FILE_BYTES} are allowed")
        async with self._gate:
            status, answer, said = await self._child(data)
        if status == REFUSED:
            raise _refused(said.decode(errors="replace")[:300])
        if status != 0:
            # It ran into its limits: memory, time, or a call that it may not make.
            raise _refused("reading it takes more than an embedding does")
        return await asyncio.to_thread(read_tensors, answer)

    async def _child(self, data: bytes) -> tuple[int, bytes, bytes]:
        # Nothing of this process's environment: it holds secrets.
        environment = {"OPENBLAS_NUM_THREADS": "1", "PATH": os.defpath}
        command = (sys.executable, "-I", "-m", "registry.unpickle")
        child = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                answer, said = await child.communicate(data)
        except TimeoutError:
            raise Unavailable("the file was not read in time; try again", reason="PICKLE_TIMEOUT") from None
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        assert child.returncode is not None
        return child.returncode, answer, said


def _refused(why: str) -> InvalidArgument:
    return InvalidArgument(f"the file cannot be used: {why}", reason="PICKLE_REFUSED", violations=[("data", why)])
