"""`python -m benchmarks.registry.echo BYTES`: a bare grpc.aio server that answers every call with BYTES bytes."""

import asyncio
import sys
from typing import Any

import grpc
import grpc.aio

METHOD = "/bench.Echo/Answer"


class _Echo(grpc.GenericRpcHandler):
    def __init__(self, size: int) -> None:
        answer = bytes(size)

        async def work(request: bytes, context: object) -> bytes:
            return answer

        self._handler: Any = grpc.unary_unary_rpc_method_handler(work)

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return self._handler


async def main(size: int) -> None:
    """Prints the port, then serves until it is killed."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Echo(size),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
