"""NATS as the trainer uses it: a connection that comes back, and the names of everything there.

A stream holds at most one message a job (a second one is refused), so that whoever is given a message knows that nobody
else is: not by the message, whose acknowledgements fence nothing, but because NATS hands it out again only when its
holder was not heard of for `ack_wait`.
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

# What any use of NATS raises while that is away, or begins anew with an empty store.
AWAY = (nats.errors.Error, OSError, asyncio.TimeoutError)
_RECONNECT_S = 0.5
_SECOND_OF_A_JOB = 10077  # JSStreamStoreFailedF: maximum messages per subject exceeded
_logger = structlog.get_logger(__name__)


def token_of(base_model: Mapping[str, Any]) -> str:
    """A base model's name in subjects, of its message as JSON: who trains on the same one gets the same jobs."""
    return hashlib.sha256(json.dumps(base_model, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Demand:
    """Jobs that no worker has been given yet, and workers that ask for one."""

    untaken: int
    asking: int


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
        self._said = ""
        self._heard: dict[str, Callable[[Msg], Awaitable[None]]] = {}

    @property
    def jetstream(self) -> JetStreamContext:
        return self.client.jetstream()

    def open(self) -> None:
        """Begins to connect, and never gives up: a trainer that finds no NATS takes jobs all the same."""
        self._connecting = asyncio.create_task(self._connect())

    async def close(self) -> None:
        """What was published before has left, if NATS is there."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait({self._connecting})
        with suppress(*AWAY):
            if self.client.is_connected:
                await self.client.flush(timeout=2)
        with suppress(*AWAY):
            await self.client.close()

    async def connected(self) -> None:
        """Returns when NATS has been reached."""
        if self._connecting is not None:
            await asyncio.shield(self._connecting)

    def hear(self, topic: str, told: Callable[[Msg], Awaitable[None]]) -> None:
        """`told` gets every message to `topic` (with NATS' wildcards) that another process publishes while NATS is
        there. Before open()."""
        self._heard[topic] = told

    async def tell(self, topic: str, data: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Publishes a hint, which is lost where nobody hears it."""
        try:
            if self.client.is_connected:
                await self.client.publish(f"{self._stream}.{topic}", data, headers=dict(headers or {}))
        except MaxPayloadError:
            _logger.warning("too large for NATS", topic=topic, bytes=len(data), limit=self.client.max_payload)
        except AWAY as error:
            _logger.debug("a hint is lost", topic=topic, error=str(error))

    async def ask(self, topic: str, data: bytes, timeout_s: float) -> bool:
        """Whether anybody answers."""
        try:
            await self.client.request(f"{self._stream}.{topic}", data, timeout=timeout_s)
        except AWAY:
            return False
        return True

    def topic(self, what: str, name: str) -> str:
        """`what` about a job."""
        parsed = JobName.parse(name)
        return f"{what}.{parsed.tenant}.{parsed.job}"

    def job_of(self, subject: str) -> str:
        """The job that a subject ends with. Raises InvalidName."""
        tenant, job = subject.split(".")[-2:]
        return str(JobName.parse(f"tenants/{tenant}/jobs/{job}"))

    async def pull(self, base: str) -> JetStreamContext.PullSubscription:
        """Where a worker asks for the next job of its base model. Waits for NATS, the first time."""
        await self.connected()
        await self.sent()
        await self._make_consumer(base)
        return await self.jetstream.pull_subscribe_bind(consumer=base, stream=self._stream)

    async def send(self, base: str, name: str) -> None:
        """Releases a job to the workers; nothing happens to one that they have already."""
        try:
            await self.jetstream.publish(f"{self._stream}.{self.topic(f'jobs.{base}', name)}", b"")
        except APIError as error:
            if error.err_code != _SECOND_OF_A_JOB:
                raise

    async def sent(self) -> set[str]:
        """The jobs that workers have, or will get next. Makes the stream, where there is none."""
        try:
            info = await self.jetstream.stream_info(self._stream, subjects_filter=f"{self._stream}.jobs.>")
        except NotFoundError:
            info = await self._make_stream()
        return {self.job_of(subject) for subject in info.state.subjects or ()}

    async def demand(self, base: str) -> Demand:
        """What a base model's workers have, and want."""
        try:
            info = await self.jetstream.consumer_info(self._stream, base)
        except NotFoundError:
            info = await self._make_consumer(base)
        return Demand(untaken=info.num_pending or 0, asking=info.num_waiting or 0)

    async def bucket(self, ttl: timedelta) -> KeyValue:
        """Where processes take leases of `ttl`."""
        await self.connected()
        name = f"{self._stream}-leases"
        config = api.KeyValueConfig(bucket=name, ttl=ttl.total_seconds(), replicas=self._replicas)
        try:
            return await self.jetstream.create_key_value(config)
        except BadRequestError:  # made with another ttl, which holds
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
                # How often a job is tried is counted by the log, where a worker's death is told from a hand-back.
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
            reconnected_cb=self._log_back,
        )
        for topic, told in self._heard.items():
            await self.client.subscribe(f"{self._stream}.{topic}", cb=told)
        await self._log_back()

    async def _log_back(self) -> None:
        self._said = ""
        _logger.info("NATS is there", version=str(self.client.connected_server_version))

    async def _log_error(self, error: Exception) -> None:
        said = f"{type(error).__name__}: {error}"
        if said != self._said:  # not for each of many tries
            self._said = said
            _logger.warning("NATS is tried again", error=said)
