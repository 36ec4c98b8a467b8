"""`python -m tests.registry.disk_full FOLDER store|views`: a registry whose disk fills up and later has space again.

It needs a mount namespace (`unshare --user --map-root-user --mount`): the store, or the views, lie on a tmpfs of a few
megabytes. Prints the outcomes as one line of JSON.
"""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc.aio
from pseudoword.errors import PseudowordError
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub

from registry.app import Registry
from tests.conftest import Place
from tests.registry.conftest import settings_of
from tests.registry.requests import REX, publish, publishing

_SIZE = 4 * 2**20


async def _outcome(call: Any) -> str:
    try:
        answer = await call
    except grpc.aio.AioRpcError as failure:
        error = PseudowordError.from_call(failure)
        return f"{error.code.name} {error.reason}"
    return str(getattr(answer, "number", 0) or getattr(answer, "version_count", "OK"))


async def main(folder: Path, what: str) -> None:
    small = folder / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "none", str(small)]
    await asyncio.to_thread(lambda: subprocess.run(command, check=True))
    places = {"store": folder / "store", "views": folder / "views"} | {what: small / what}
    settings = settings_of(Place(address=str(places["store"]), access=None), store={"views": places["views"]})
    seen: dict[str, Any] = {}
    async with Registry(settings) as registry, grpc.aio.insecure_channel(registry.server.address) as channel:
        stub: Any = RegistryServiceStub(channel)
        await publish(stub, 2)
        filler = small / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                seen["filled"] = error.strerror
        request = publishing(3.0, request_id="full")
        seen["full"] = [await _outcome(stub.PublishVersion(request, timeout=20)) for _ in range(3)]
        seen["read"] = await _outcome(stub.GetConcept(rpc.GetConceptRequest(name=REX), timeout=20))
        filler.unlink()
        seen["again"] = await _outcome(stub.PublishVersion(request, timeout=20))
        seen["next"] = [version.number for version in await publish(stub, 2)]
    async with Registry(settings) as registry, grpc.aio.insecure_channel(registry.server.address) as channel:
        listed = await RegistryServiceStub(channel).ListVersions(rpc.ListVersionsRequest(parent=REX))
        seen["listed"] = [version.number for version in listed.versions]
    from standalone.fsck import inspect

    seen["sound"] = (await asyncio.to_thread(inspect, str(places["store"]))).sound
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
