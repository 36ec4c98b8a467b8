"""What the trainer's processes tell each other beside the log, over NATS: nothing depends on it.

That a job has changed (others then look into the log at once, instead of a moment later), how far a running one is, and
who wants to see it.
"""

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack, suppress

import structlog
from nats.aio.msg import Msg
from pseudoword.names import InvalidName
from pseudoword.trainer.v1 import resources_pb2

from rpc.errors import NotFound
from rpc.watchers import raise_if_cancelled
from storage.errors import StorageError
from trainer.jobs.job_events import News
from trainer.jobs.job_store import JobStore
from trainer.jobs.life_cycle import State
from trainer.jobs.state_machine import SHARD
from trainer.queue.broker import Broker

_ATTEMPT, _INTERVAL = "Attempt", "Interval"
_WISH_S = 5.0  # a wish for previews holds for so long, and is repeated within it
_WAITING = 1_000  # hints that have not left; more are thrown away
_logger = structlog.get_logger(__name__)


class Hints:
    """One process's hints, of which it hears others'. Lives on the event loop. Before broker.open()."""

    def __init__(self, broker: Broker, job_store: JobStore, *, trains: bool) -> None:
        """A process that `trains` says how far its jobs are, and is told what others want to see."""
        self._broker = broker
        self._job_store = job_store
        self._outbox: asyncio.Queue[tuple[str, bytes, Mapping[str, str]]] = asyncio.Queue(_WAITING)
        self._wishes: dict[str, ExitStack] = {}
        job_store.events.on_own_change(lambda name: self._tell("changed", name))
        broker.hear("changed.*.*", self._hear_change)
        self._trains = trains
        if trains:
            job_store.events.on_own_report(self._tell_news)
            broker.hear("wanted.*.*", self._hear_wish)
        else:
            job_store.events.on_move(job_store.events.forget)
            broker.hear("progress.*.*", self._hear_news)
            broker.hear("preview.*.*", self._hear_news)

    async def run(self) -> None:
        """Hints leave until this is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send())
            tasks.create_task(self._wish())

    def _tell(self, what: str, name: str, data: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        with suppress(asyncio.QueueFull):
            self._outbox.put_nowait((self._broker.topic(what, name), data, headers or {}))

    def _tell_news(self, name: str, attempt: int, news: News) -> None:
        what = "progress" if isinstance(news, resources_pb2.Progress) else "preview"
        self._tell(what, name, news.SerializeToString(), {_ATTEMPT: str(attempt)})

    async def _send(self) -> None:
        while True:
            raise_if_cancelled()
            await self._broker.tell(*await self._outbox.get())

    async def _wish(self) -> None:
        """Tells workers which jobs somebody here wants to see."""
        while not self._trains:
            for name, interval_s in self._job_store.events.previews.intervals().items():
                self._tell("wanted", name, headers={_INTERVAL: str(interval_s)})
            await asyncio.sleep(_WISH_S / 3)

    async def _hear_change(self, message: Msg) -> None:
        with suppress(StorageError):  # whoever follows the log finds it a moment later
            await self._job_store.ledger.revision(SHARD)

    async def _hear_news(self, message: Msg) -> None:
        try:
            name = self._broker.job_of(message.subject)
            attempt = int((message.headers or {})[_ATTEMPT])
            kind = resources_pb2.Progress if ".progress." in message.subject else resources_pb2.JobEvent.Preview
            row, _ = await self._job_store.row(name, cached=True)
            if row["attempt"] < attempt:
                row, _ = await self._job_store.row(name)
            # A worker that has lost the job may not know it yet.
            if (row["state"], row["attempt"]) == (State.RUNNING, attempt):
                self._job_store.events.show(name, kind.FromString(message.data))
        except (InvalidName, NotFound, StorageError, KeyError, ValueError) as error:
            _logger.warning("a hint of no use", subject=message.subject, error=str(error))

    async def _hear_wish(self, message: Msg) -> None:
        try:
            name = self._broker.job_of(message.subject)
            interval_s = float((message.headers or {})[_INTERVAL])
        except (InvalidName, KeyError, ValueError) as error:
            _logger.warning("a hint of no use", subject=message.subject, error=str(error))
            return
        wish = ExitStack()
        wish.enter_context(self._job_store.events.previews.wanted(name, interval_s))
        self._end_wish(name)
        self._wishes[name] = wish
        asyncio.get_running_loop().call_later(_WISH_S, self._end_wish, name, wish)

    def _end_wish(self, name: str, wish: ExitStack | None = None) -> None:
        """Ends the wish for a job's previews that holds, if that is `wish` or any is meant."""
        holding = self._wishes.get(name)
        if holding is not None and wish in (None, holding):
            del self._wishes[name]
            holding.close()
