"""A registry that withholds a response, so that a trainer can be killed between a commit and its response."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

_SERVICE = "/pseudoword.registry.v1.RegistryService/"


class StalledRegistry(grpc.GenericRpcHandler):
    """A proxy of a real registry: it forwards every call, and withholds the responses of one method.

    `arrived` is set when the first response is withheld.
    """

    def __init__(self, registry: str, method: str) -> None:
        self.arrived = threading.Event()
        self._stalled = _SERVICE + method
        self._closing = threading.Event()
        self._real = grpc.insecure_channel(registry)
        self._server = grpc.server(ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers((self,))
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def close(self) -> None:
        self._closing.set()
        self._server.stop(0).wait()
        self._real.close()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method

        def forward(request: bytes, context: grpc.ServicerContext) -> bytes:
            metadata = tuple(item for item in context.invocation_metadata() if item[0].startswith("x-pseudoword"))
            call: Any = self._real.unary_unary(method)
            try:
                answer: bytes = call(request, metadata=metadata)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details() or "")
                raise AssertionError("unreachable: abort raises") from error
            if method == self._stalled:
                self.arrived.set()
                self._closing.wait()
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            return answer

        return grpc.unary_unary_rpc_method_handler(forward)
