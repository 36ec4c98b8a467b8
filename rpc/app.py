"""What the three servers have in common: parts are opened in order, served, drained, closed in the opposite order."""

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

    Whatever `_open` opens it enters into `_stack`, which is left in the opposite order.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._stack = AsyncExitStack()
        self._ledgers: list[Ledger[Any]] = []
        self._crash: BaseException | None = None

    async def __aenter__(self) -> Self:
        """Opens everything and serves. Raises SettingsError, also for a store that cannot be used."""
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def run_until_signalled(self) -> None:
        """Serves until SIGTERM, then drains. Raises StoreReplaced when the store was replaced under the server, and the
        error of a background task that has died."""
        await self.server.run_until_signalled(self._drain)
        for ledger in self._ledgers:
            ledger.refuse_replaced()
        await self._drain()
        if self._crash is not None:
            raise self._crash

    @abstractmethod
    async def _open(self) -> None:
        """Opens what the server needs, starts it, and marks it ready."""

    async def _drain(self) -> None:  # noqa: B027, most servers have nothing to drain
        """Finishes what was accepted, or leaves it to another server. May be called twice."""

    async def _open_ledger(
        self, store: StoreSettings, s3: S3Settings, state_machine: StateMachine[C], *, shards: int, alone: bool = False
    ) -> tuple[ObjectStore, Ledger[C]]:
        """Opens a probed store and its ledger; the server ends when the store is replaced by another one. `alone`: no
        second server of this machine can use the store. Raises SettingsError."""
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
        """Binds the server's address; what was opened before is closed after the last call has ended."""
        await self.server.start()
        self._stack.push_async_callback(self.server.stop, grace_s=0)

    def _run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` until what was opened after it is closed. If it dies, the server ends."""
        task = asyncio.create_task(work)

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                _logger.critical("a background task has died; the server ends", exc_info=error)
                self._crash = error
                self.server.end()

        task.add_done_callback(ended)
        self._stack.push_async_callback(_cancelled, task)

    async def _end_when_replaced(self, ledger: Ledger[Any]) -> None:
        await ledger.until_replaced()
        self.server.end()


def run(name: str, make: Callable[[S], App], load: Callable[[], S]) -> None:
    """Runs the server called `name` in this process until it is signalled. A SettingsError, and a store that was
    replaced under the server, end the process with the message and status 2."""
    try:
        settings = load()
        configure(name, settings.server.log_level, settings.server.log_format)
        asyncio.run(_serve(make, settings))
    except (SettingsError, StoreReplaced) as error:
        sys.stderr.write(f"{name}: {error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # before the server handles signals: nothing is open yet that must be drained
        raise SystemExit(130) from None


async def _serve(make: Callable[[S], App], settings: S) -> None:
    # grpc.aio takes the event loop that it is made on.
    async with make(settings) as app:
        await app.run_until_signalled()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
