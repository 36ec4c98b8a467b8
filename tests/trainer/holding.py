"""A registry that keeps an answer to itself, so that a trainer can be killed between an act and the word of it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

_SERVICE = "/pseudoword.registry.v1.RegistryService/"


class Holding(grpc.GenericRpcHandler):
    """A registry on the way to the real one: it passes each call on, and keeps the answers to one method."""

    def __init__(self, registry: str, method: str) -> None:
        self.arrived = threading.Event()
        self._held = _SERVICE + method
        self._leave = threading.Event()
        self._real = grpc.insecure_channel(registry)
        self._server = grpc.server(ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers((self,))
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def close(self) -> None:
        self._leave.set()
        self._server.stop(0).wait()
        self._real.close()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method

        def pass_on(request: bytes, context: grpc.ServicerContext) -> bytes:
            metadata = tuple(item for item in context.invocation_metadata() if item[0].startswith("x-pseudoword"))
            call: Any = self._real.unary_unary(method)
            try:
                answer: bytes = call(request, metadata=metadata)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details() or "")
                raise AssertionError("unreachable: abort raises") from error
            if method == self._held:
                self.arrived.set()
                self._leave.wait()
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            return answer

        return grpc.unary_unary_rpc_method_handler(pass_on)
