"""Hints that the trainer's processes exchange over NATS, beside the log. Correctness does not depend on them.

A hint says that a job has changed (other processes then read the log immediately, instead of at their next poll),
reports the progress or a preview of a running job, or requests previews of it.
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
_PREVIEW_REQUEST_S = 5.0  # lifetime of a request for previews, which is repeated within it
_MAX_OUTBOX = 1_000  # unsent hints; further ones are dropped
_logger = structlog.get_logger(__name__)


class Hints:
    """Sends a process's hints and handles those of others. Lives on the event loop. Create it before broker.open()."""

    def __init__(self, broker: Broker, job_store: JobStore, *, trains: bool) -> None:
        """A process that `trains` sends progress and previews of its jobs, and receives requests for previews."""
        self._broker = broker
        self._job_store = job_store
        self._outbox: asyncio.Queue[tuple[str, bytes, Mapping[str, str]]] = asyncio.Queue(_MAX_OUTBOX)
        self._preview_requests: dict[str, ExitStack] = {}
        job_store.events.on_own_change(lambda name: self._enqueue("changed", name))
        broker.subscribe("changed.*.*", self._on_change)
        self._trains = trains
        if trains:
            job_store.events.on_own_report(self._enqueue_report)
            broker.subscribe("wanted.*.*", self._on_preview_request)
        else:
            job_store.events.on_move(job_store.events.forget)
            broker.subscribe("progress.*.*", self._on_report)
            broker.subscribe("preview.*.*", self._on_report)

    async def run(self) -> None:
        """Sends hints until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send())
            tasks.create_task(self._request_previews())

    def _enqueue(self, what: str, name: str, data: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        with suppress(asyncio.QueueFull):
            self._outbox.put_nowait((self._broker.topic(what, name), data, headers or {}))

    def _enqueue_report(self, name: str, attempt: int, news: News) -> None:
        what = "progress" if isinstance(news, resources_pb2.Progress) else "preview"
        self._enqueue(what, name, news.SerializeToString(), {_ATTEMPT: str(attempt)})

    async def _send(self) -> None:
        while True:
            raise_if_cancelled()
            await self._broker.publish_hint(*await self._outbox.get())

    async def _request_previews(self) -> None:
        """Repeats to the workers which jobs have watchers here that want previews."""
        while not self._trains:
            for name, interval_s in self._job_store.events.previews.intervals().items():
                self._enqueue("wanted", name, headers={_INTERVAL: str(interval_s)})
            await asyncio.sleep(_PREVIEW_REQUEST_S / 3)

    async def _on_change(self, message: Msg) -> None:
        with suppress(StorageError):  # JobStore.follow finds the change at its next poll
            await self._job_store.ledger.revision(SHARD)

    async def _on_report(self, message: Msg) -> None:
        try:
            name = self._broker.job_of(message.subject)
            attempt = int((message.headers or {})[_ATTEMPT])
            kind = resources_pb2.Progress if ".progress." in message.subject else resources_pb2.JobEvent.Preview
            row, _ = await self._job_store.row(name, cached=True)
            if row["attempt"] < attempt:
                row, _ = await self._job_store.row(name)
            # A worker that has lost the job may still report until it is notified.
            if (row["state"], row["attempt"]) == (State.RUNNING, attempt):
                self._job_store.events.show(name, kind.FromString(message.data))
        except (InvalidName, NotFound, StorageError, KeyError, ValueError) as error:
            _logger.warning("invalid hint ignored", subject=message.subject, error=str(error))

    async def _on_preview_request(self, message: Msg) -> None:
        try:
            name = self._broker.job_of(message.subject)
            interval_s = float((message.headers or {})[_INTERVAL])
        except (InvalidName, KeyError, ValueError) as error:
            _logger.warning("invalid hint ignored", subject=message.subject, error=str(error))
            return
        request = ExitStack()
        request.enter_context(self._job_store.events.previews.wanted(name, interval_s))
        self._end_preview_request(name)
        self._preview_requests[name] = request
        asyncio.get_running_loop().call_later(_PREVIEW_REQUEST_S, self._end_preview_request, name, request)

    def _end_preview_request(self, name: str, request: ExitStack | None = None) -> None:
        """Ends the request for a job's previews that is in force; with `request`, only if it is that one."""
        current = self._preview_requests.get(name)
        if current is not None and request in (None, current):
            del self._preview_requests[name]
            current.close()
