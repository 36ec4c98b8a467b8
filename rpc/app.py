"""The life cycle of a server: its parts are opened in order, it serves, it drains, and closes its parts in reverse."""

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Self, TypeVar

import structlog

from rpc.logs import configure
from rpc.open_store import S3Settings, StoreSettings, open_fit_store, open_ledger
from rpc.server import Server
from rpc.settings import Settings, SettingsError
from storage.errors import StoreReplaced
from storage.ledger.ledger import Ledger
from storage.ledger.state_machine import StateMachine
from storage.objects.base import ObjectStore

C = TypeVar("C")
S = TypeVar("S", bound=Settings)
_logger = structlog.get_logger(__name__)


class App(ABC):
    """One server.

    async with SomeApp(settings) as app:
        await app.run_until_signalled()         # it serves at app.server.address

    `_open` registers everything that it opens on `_stack`, which closes it in reverse order.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._stack = AsyncExitStack()
        self._ledgers: list[Ledger[Any]] = []
        self._crash: BaseException | None = None

    async def __aenter__(self) -> Self:
        """Open all parts and serve. Raises SettingsError, also for an unusable store."""
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def run_until_signalled(self) -> None:
        """Serve until SIGTERM, then drain. Raises StoreReplaced when the store was replaced while the server ran, and
        the error of a failed background task."""
        await self.server.run_until_signalled(self._drain)
        for ledger in self._ledgers:
            ledger.refuse_replaced()
        await self._drain()
        if self._crash is not None:
            raise self._crash

    @abstractmethod
    async def _open(self) -> None:
        """Open the server's parts, start the server and mark it ready."""

    async def _drain(self) -> None:  # noqa: B027, most servers have nothing to drain
        """Finish the accepted work, or hand it over to another server. May be called twice."""

    async def _open_ledger(
        self, store: StoreSettings, s3: S3Settings, state_machine: StateMachine[C], *, shards: int, alone: bool = False
    ) -> tuple[ObjectStore, Ledger[C]]:
        """Open a store, probe it, and open its ledger. The server stops when the store is replaced by another one.
        `alone`: no second server on this machine can use the store. Raises SettingsError."""
        opened = await asyncio.to_thread(open_fit_store, store, s3)
        self._stack.callback(opened.close)
        ledger = await asyncio.to_thread(
            open_ledger, opened, store, state_machine, shards=shards, alone=alone, metrics=self.server.metrics
        )
        self._stack.push_async_callback(ledger.close)
        self._ledgers.append(ledger)
        self._run_in_background(self._end_when_replaced(ledger))
        return opened, ledger

    async def _serve(self) -> None:
        """Bind the server's address. Parts that were opened before are closed after the last call has ended."""
        await self.server.start()
        self._stack.push_async_callback(self.server.stop, grace_s=0)

    def _run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until the parts opened after it are closed. If it fails, the server stops."""
        task = asyncio.create_task(work)

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                _logger.critical("background task failed, stopping the server", exc_info=error)
                self._crash = error
                self.server.end()

        task.add_done_callback(ended)
        self._stack.push_async_callback(_cancelled, task)

    async def _end_when_replaced(self, ledger: Ledger[Any]) -> None:
        await ledger.until_replaced()
        self.server.end()


def run(name: str, make: Callable[[S], App], load: Callable[[], S]) -> None:
    """Run the server `name` in this process until it is signalled. A SettingsError, and a store that was replaced while
    the server ran, end the process with a message on standard error and exit status 2."""
    try:
        settings = load()
        configure(name, settings.server.log_level, settings.server.log_format)
        asyncio.run(_serve(make, settings))
    except (SettingsError, StoreReplaced) as error:
        sys.stderr.write(f"{name}: {error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # raised before the server handles signals: there is nothing to drain yet
        raise SystemExit(130) from None


async def _serve(make: Callable[[S], App], settings: S) -> None:
    # grpc.aio binds a server to the event loop in which it is created.
    async with make(settings) as app:
        await app.run_until_signalled()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
