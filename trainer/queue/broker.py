"""The trainer's connection to NATS, which reconnects by itself, and the names of its stream, topics and bucket.

The stream holds at most one message for each job: NATS refuses a second one. NATS delivers a message again only after
its holder has not renewed it for `ack_wait`, so normally one worker has it at a time. This is no guarantee, because
acknowledgements fence nothing: the log's attempt number is the fencing token.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import MaxPayloadError
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, BadRequestError, NotFoundError
from nats.js.kv import KeyValue
from pseudoword.names import JobName

from trainer.queue.settings import NatsSettings

# Raised by any use of NATS while it is unavailable, or after it was restarted with an empty store.
NATS_ERRORS = (nats.errors.Error, OSError, asyncio.TimeoutError)
_RECONNECT_S = 0.5
_SUBJECT_FULL = 10077  # JSStreamStoreFailedF: maximum messages per subject exceeded
_logger = structlog.get_logger(__name__)


def token_of(base_model: Mapping[str, Any]) -> str:
    """A base model's name in NATS subjects, from its message as JSON. Workers with equal base models share jobs."""
    return hashlib.sha256(json.dumps(base_model, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Demand:
    """Messages that were not delivered to a worker yet, and pull requests that wait for one."""

    undelivered: int
    waiting_pulls: int


class Broker:
    """One process's connection. Lives on its event loop."""

    def __init__(self, settings: NatsSettings, *, ack_wait: timedelta) -> None:
        """Raises SettingsError."""
        self._options = settings.options()
        self._stream = settings.stream
        self._replicas = settings.replicas
        self.ack_wait_s = ack_wait.total_seconds()
        self.client = Client()
        self._connecting: asyncio.Task[None] | None = None
        self._last_error = ""
        self._callbacks: dict[str, Callable[[Msg], Awaitable[None]]] = {}

    @property
    def jetstream(self) -> JetStreamContext:
        return self.client.jetstream()

    def open(self) -> None:
        """Starts to connect and retries without a limit: a trainer accepts jobs without NATS too."""
        self._connecting = asyncio.create_task(self._connect())

    async def close(self) -> None:
        """Closes the connection. Flushes what was published before, if NATS is connected."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait({self._connecting})
        with suppress(*NATS_ERRORS):
            if self.client.is_connected:
                await self.client.flush(timeout=2)
        with suppress(*NATS_ERRORS):
            await self.client.close()

    async def connected(self) -> None:
        """Returns once NATS was connected for the first time."""
        if self._connecting is not None:
            await asyncio.shield(self._connecting)

    def subscribe(self, topic: str, callback: Callable[[Msg], Awaitable[None]]) -> None:
        """Calls `callback` with every message that another process publishes to `topic` (it may hold NATS' wildcards)
        while this process is connected. Must be called before open()."""
        self._callbacks[topic] = callback

    async def publish_hint(self, topic: str, data: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Publishes a hint: it is lost if NATS is unavailable, or if no process has subscribed to the topic."""
        try:
            if self.client.is_connected:
                await self.client.publish(f"{self._stream}.{topic}", data, headers=dict(headers or {}))
        except MaxPayloadError:
            _logger.warning(
                "hint dropped: larger than NATS allows", topic=topic, bytes=len(data), limit=self.client.max_payload
            )
        except NATS_ERRORS as error:
            _logger.debug("hint lost", topic=topic, error=str(error))

    async def request(self, topic: str, data: bytes, timeout_s: float) -> bool:
        """Sends a request. Returns whether any process replies within `timeout_s`."""
        try:
            await self.client.request(f"{self._stream}.{topic}", data, timeout=timeout_s)
        except NATS_ERRORS:
            return False
        return True

    def topic(self, what: str, name: str) -> str:
        """The topic `what` of the job with the resource name `name`."""
        parsed = JobName.parse(name)
        return f"{what}.{parsed.tenant}.{parsed.job}"

    def job_of(self, subject: str) -> str:
        """The resource name of the job that a subject ends with. Raises InvalidName."""
        tenant, job = subject.split(".")[-2:]
        return str(JobName.parse(f"tenants/{tenant}/jobs/{job}"))

    async def pull(self, base: str) -> JetStreamContext.PullSubscription:
        """The subscription from which a worker pulls jobs of its base model. Waits until NATS was connected once."""
        await self.connected()
        await self.sent()
        await self._make_consumer(base)
        return await self.jetstream.pull_subscribe_bind(consumer=base, stream=self._stream)

    async def send(self, base: str, name: str) -> None:
        """Dispatches a job to the workers. Does nothing if the stream already holds the job's message."""
        try:
            await self.jetstream.publish(f"{self._stream}.{self.topic(f'jobs.{base}', name)}", b"")
        except APIError as error:
            if error.err_code != _SUBJECT_FULL:
                raise

    async def sent(self) -> set[str]:
        """The jobs with a message in the stream: sent, and not acknowledged. Creates the stream if it is absent."""
        try:
            info = await self.jetstream.stream_info(self._stream, subjects_filter=f"{self._stream}.jobs.>")
        except NotFoundError:
            info = await self._make_stream()
        return {self.job_of(subject) for subject in info.state.subjects or ()}

    async def demand(self, base: str) -> Demand:
        """The demand of a base model's workers. Creates their consumer if it is absent."""
        try:
            info = await self.jetstream.consumer_info(self._stream, base)
        except NotFoundError:
            info = await self._make_consumer(base)
        return Demand(undelivered=info.num_pending or 0, waiting_pulls=info.num_waiting or 0)

    async def bucket(self, ttl: timedelta) -> KeyValue:
        """The bucket in which processes take leases of `ttl`. Waits until NATS was connected once."""
        await self.connected()
        name = f"{self._stream}-leases"
        config = api.KeyValueConfig(bucket=name, ttl=ttl.total_seconds(), replicas=self._replicas)
        try:
            return await self.jetstream.create_key_value(config)
        except BadRequestError:  # it exists with another ttl, which stays in force
            return await self.jetstream.key_value(name)

    async def _make_stream(self) -> api.StreamInfo:
        return await self.jetstream.add_stream(
            api.StreamConfig(
                name=self._stream,
                subjects=[f"{self._stream}.jobs.>"],
                retention=api.RetentionPolicy.WORK_QUEUE,
                storage=api.StorageType.FILE,
                num_replicas=self._replicas,
                discard=api.DiscardPolicy.NEW,
                discard_new_per_subject=True,
                max_msgs_per_subject=1,
            )
        )

    async def _make_consumer(self, base: str) -> api.ConsumerInfo:
        return await self.jetstream.add_consumer(
            self._stream,
            api.ConsumerConfig(
                durable_name=base,
                filter_subject=f"{self._stream}.jobs.{base}.>",
                ack_policy=api.AckPolicy.EXPLICIT,
                ack_wait=self.ack_wait_s,
                # No limit here: the log counts a job's attempts, and distinguishes a worker's death from a hand-back.
                max_deliver=-1,
                max_ack_pending=-1,
            ),
        )

    async def _connect(self) -> None:
        await self.client.connect(
            **self._options,
            name="pseudoword-trainer",
            reconnect_time_wait=_RECONNECT_S,  # type: ignore[arg-type]
            max_reconnect_attempts=-1,
            no_echo=True,
            error_cb=self._log_error,
            reconnected_cb=self._log_connected,
        )
        for topic, callback in self._callbacks.items():
            await self.client.subscribe(f"{self._stream}.{topic}", cb=callback)
        await self._log_connected()

    async def _log_connected(self) -> None:
        self._last_error = ""
        _logger.info("NATS is connected", version=str(self.client.connected_server_version))

    async def _log_error(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        if text != self._last_error:  # the same error is logged once, not with each retry
            self._last_error = text
            _logger.warning("NATS is unavailable; retrying", error=text)
