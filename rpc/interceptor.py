"""The server's interceptor: authenticates the caller, translates exceptions, writes a log line and counts metrics."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NamedTuple, TypeVar

import grpc
import grpc.aio
import structlog
from grpc_status import rpc_status

from rpc import identity
from rpc.errors import DataLoss, Error, ErrorTable, Internal, Unauthenticated, Unavailable, Unimplemented, to_status
from rpc.identity import ANONYMOUS, ON_BEHALF_OF, Principal, Tokens
from rpc.metrics import MethodMetrics, Metrics

_CODES = {code.value[0]: code for code in grpc.StatusCode}
# Open without a token, for probes and tools. Calls to these are neither logged nor counted.
_OPEN = frozenset(
    {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection"}
)

_T = TypeVar("_T")


class _Method(NamedTuple):
    """A method of a service, looked up once. `wrap` and `make` belong to its kind: unary or streaming."""

    service: str
    name: str
    metrics: MethodMetrics
    wrap: Callable[..., Any]
    make: Callable[..., Any]


class _Rpc(NamedTuple):
    """A running rpc."""

    service: str
    method: str
    metadata: dict[str, str | bytes]
    metrics: MethodMetrics


class Interceptor(grpc.aio.ServerInterceptor):
    """The only interceptor of a server.

    tokens None: every caller is ANONYMOUS. Exceptions of handlers are translated by `table` and sent with status
    details. A cancelled handler gets asyncio.CancelledError; an async generator is closed before the rpc's task ends.
    """

    def __init__(self, *, table: ErrorTable, tokens: Tokens | None, metrics: Metrics) -> None:
        self._table = table
        self._tokens = tokens
        self._metrics = metrics
        # Bound once: the lazy proxy would bind again for every line.
        self._log = structlog.get_logger("rpc").bind()
        self._methods: dict[str, _Method] = {}
        self._running: set[asyncio.Task[Any]] = set()
        self._stopping = False

    def cancel_running(self) -> None:
        """Cancel every running rpc; its client gets UNAVAILABLE, reason SERVER_STOPPING."""
        self._stopping = True
        for task in self._running:
            task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        path = handler_call_details.method
        method = self._methods.get(path)
        if method is None:
            service, _, name = path.lstrip("/").rpartition("/")
            if service in _OPEN:
                return handler
            # Only existing methods get here, so the cache is bounded.
            method = self._methods[path] = self._method(service, name, handler)
        metadata = dict(handler_call_details.invocation_metadata or ())
        rpc = _Rpc(method.service, method.name, metadata, method.metrics)
        return method.make(
            method.wrap(rpc, handler),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _method(self, service: str, name: str, handler: Any) -> _Method:
        kinds = {
            (False, False): ("unary", self._unary_unary, grpc.unary_unary_rpc_method_handler),
            (False, True): ("server_stream", self._unary_stream, grpc.unary_stream_rpc_method_handler),
            (True, False): ("client_stream", self._stream_unary, grpc.stream_unary_rpc_method_handler),
            (True, True): ("bidi_stream", self._stream_stream, grpc.stream_stream_rpc_method_handler),
        }
        kind, wrap, make = kinds[handler.request_streaming, handler.response_streaming]
        return _Method(service, name, self._metrics.of(kind, service, name), wrap, make)

    # The four kinds. Responses are written here, not yielded, so that a cancellation is raised in this frame and the
    # handler's generator is closed before the rpc's task ends.

    def _unary_unary(self, rpc: _Rpc, handler: Any) -> Any:
        async def call(request: Any, context: Any) -> Any:
            return await self._run(
                rpc, context, lambda: self._one(rpc, handler.unary_unary(self._in(rpc, request), context))
            )

        return call

    def _stream_unary(self, rpc: _Rpc, handler: Any) -> Any:
        async def call(requests: Any, context: Any) -> Any:
            return await self._run(
                rpc, context, lambda: self._one(rpc, handler.stream_unary(self._ins(rpc, requests), context))
            )

        return call

    def _unary_stream(self, rpc: _Rpc, handler: Any) -> Any:
        async def call(request: Any, context: Any) -> None:
            await self._run(
                rpc, context, lambda: self._many(rpc, context, handler.unary_stream(self._in(rpc, request), context))
            )

        return call

    def _stream_stream(self, rpc: _Rpc, handler: Any) -> Any:
        async def call(requests: Any, context: Any) -> None:
            await self._run(
                rpc, context, lambda: self._many(rpc, context, handler.stream_stream(self._ins(rpc, requests), context))
            )

        return call

    def _in(self, rpc: _Rpc, request: _T) -> _T:
        rpc.metrics.received.inc()
        return request

    async def _ins(self, rpc: _Rpc, requests: AsyncIterable[_T]) -> AsyncIterator[_T]:
        async for request in requests:
            yield self._in(rpc, request)

    async def _one(self, rpc: _Rpc, answer: Awaitable[_T]) -> _T:
        response = await answer
        rpc.metrics.sent.inc()
        return response

    async def _many(self, rpc: _Rpc, context: Any, answers: Any) -> None:
        if inspect.isawaitable(answers):  # a handler that writes its responses itself
            await answers
            return
        async with aclosing(answers):
            async for response in answers:
                await context.write(response)
                rpc.metrics.sent.inc()

    async def _run(self, rpc: _Rpc, context: Any, body: Callable[[], Awaitable[_T]]) -> _T:
        began = time.monotonic()
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        rpc.metrics.started.inc()
        code = grpc.StatusCode.OK
        failure: Error | None = None
        principal: Principal | None = None
        try:
            principal = self._authenticate(rpc)
            identity.enter(principal)
            answer = await body()
            code = _code_of(context)
            return answer
        except grpc.aio.AbortError:
            code = _code_of(context)
            raise
        except asyncio.CancelledError:
            if self._stopping:
                failure = Unavailable("the server is stopping; try again", reason="SERVER_STOPPING")
                code = failure.code
                await self._abort(context, failure)
            remaining = context.time_remaining()
            late = remaining is not None and remaining <= 0
            code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            raise
        except Exception as exception:
            if isinstance(exception, NotImplementedError):  # raised by the generated servicer
                failure = Unimplemented(f"this server does not implement {rpc.method}", metadata={"part": rpc.method})
            else:
                failure = self._table.translate(exception)
            code = failure.code
            await self._abort(context, failure)
            raise  # not reached: abort raises
        finally:
            seconds = time.monotonic() - began
            rpc.metrics.handling.observe(seconds)
            rpc.metrics.handled(code.name).inc()
            self._write_line(rpc, context, principal, code, failure, seconds)
            self._running.discard(task)

    def _authenticate(self, rpc: _Rpc) -> Principal:
        if self._tokens is None:
            principal = ANONYMOUS
        else:
            given = rpc.metadata.get("authorization")
            if given is None:
                raise Unauthenticated(
                    "this server requires a bearer token: send the metadata `authorization: Bearer TOKEN`",
                    reason="TOKEN_MISSING",
                )
            scheme, _, token = str(given).partition(" ")
            if scheme.lower() != "bearer" or not token.strip():
                raise Unauthenticated(
                    "the metadata `authorization` is malformed: it must be `Bearer TOKEN`", reason="TOKEN_MALFORMED"
                )
            principal = self._tokens.principal(token.strip())
        caller = rpc.metadata.get(ON_BEHALF_OF)
        return principal if caller is None else identity.acting_for(principal, str(caller))

    @staticmethod
    async def _abort(context: Any, failure: Error) -> None:
        status = to_status(failure)
        sent = rpc_status.to_status(status)
        trailers = list(sent.trailing_metadata)
        if failure.retry_after is not None:
            pushback_ms = max(0, round(failure.retry_after.total_seconds() * 1000))
            trailers.append(("grpc-retry-pushback-ms", str(pushback_ms)))
        await context.abort(sent.code, sent.details, tuple(trailers))

    def _write_line(
        self,
        rpc: _Rpc,
        context: Any,
        principal: Principal | None,
        code: grpc.StatusCode,
        failure: Error | None,
        seconds: float,
    ) -> None:
        line: dict[str, Any] = {
            "method": f"/{rpc.service}/{rpc.method}",
            "code": code.name,
            "seconds": round(seconds, 4),
            "peer": context.peer(),
        }
        if principal is not None:
            line["principal"] = principal.name
            if principal.on_behalf_of is not None:
                line["caller"] = principal.caller.name
        if failure is not None:
            line |= {"reason": failure.reason, "message": failure.message[:500]}
        if isinstance(failure, Internal | DataLoss):
            self._log.error("rpc", **line)
        else:
            self._log.info("rpc", **line)


def _code_of(context: Any) -> grpc.StatusCode:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return _CODES.get(code or 0, grpc.StatusCode.UNKNOWN)
