"""Elects one of several processes for a task: a lease in a NATS key-value bucket."""

import asyncio
import uuid
from contextlib import suppress
from datetime import timedelta

import structlog
from nats.js.errors import KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from rpc.watchers import raise_if_cancelled
from trainer.queue.broker import NATS_ERRORS, Broker

_RENEWALS = 3  # within a lease's time to live
_logger = structlog.get_logger(__name__)


class Leadership:
    """A lease that one process holds at a time and renews while it runs.

    A process that was suspended and resumes may briefly believe that it still holds the lease. The task that the lease
    protects must therefore be harmless when two processes do it.
    """

    def __init__(self, broker: Broker, what: str, ttl: timedelta) -> None:
        self._broker = broker
        self._what = what
        self._ttl = ttl
        self._name = uuid.uuid4().hex
        self._revision = 0  # of the bucket entry by which this process holds the lease; 0: it does not hold it

    @property
    def held(self) -> bool:
        """Whether this process holds the lease, to its knowledge."""
        return self._revision > 0

    async def seek(self) -> None:
        """Takes the lease whenever it is free, and renews it, until cancelled; then gives it up."""
        try:
            await self._seek()
        finally:
            if self.held and self._broker.client.is_connected:
                self._revision = 0
                with suppress(*NATS_ERRORS):
                    await (await self._broker.bucket(self._ttl)).delete(self._what)

    async def _seek(self) -> None:
        bucket: KeyValue | None = None
        while True:
            raise_if_cancelled()
            try:
                bucket = bucket or await self._broker.bucket(self._ttl)
                await self._renew(bucket)
            except NATS_ERRORS as error:
                # Whether the lease is still held is unknown: another process may have taken it.
                _logger.warning(
                    "lease given up: NATS is unavailable", what=self._what, error=f"{type(error).__name__}: {error}"
                )
                self._revision, bucket = 0, None
            await asyncio.sleep(self._ttl.total_seconds() / _RENEWALS)

    async def _renew(self, bucket: KeyValue) -> None:
        held = self.held
        try:
            if held:
                self._revision = await bucket.update(self._what, self._name.encode(), last=self._revision)
            else:
                self._revision = await bucket.create(self._what, self._name.encode())
        except KeyWrongLastSequenceError:
            entry = await bucket.get(self._what)
            # The entry is this process's own if the reply to its last write was lost.
            self._revision = entry.revision or 0 if entry.value == self._name.encode() else 0
        if held != self.held:
            _logger.info("lease taken" if self.held else "lease lost", what=self._what)
