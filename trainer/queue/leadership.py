"""Who of several processes does what one of them must do: a lease in a bucket of NATS."""

import asyncio
import uuid
from contextlib import suppress
from datetime import timedelta

import structlog
from nats.js.errors import KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from rpc.watchers import raise_if_cancelled
from trainer.queue.broker import AWAY, Broker

_RENEWALS = 3  # within a lease
_logger = structlog.get_logger(__name__)


class Leadership:
    """A lease that one process has at a time, renewed for as long as it lives.

    One that was stopped and goes on may believe for a moment that it still has it: what the lease is for must be
    harmless when two do it.
    """

    def __init__(self, broker: Broker, what: str, ttl: timedelta) -> None:
        self._broker = broker
        self._what = what
        self._ttl = ttl
        self._name = uuid.uuid4().hex
        self._revision = 0  # of the entry that says that it is ours; 0: it does not

    @property
    def held(self) -> bool:
        """Whether this process has the lease, as far as it knows."""
        return self._revision > 0

    async def seek(self) -> None:
        """Takes the lease whenever nobody has it, for ever; gives it up when cancelled."""
        try:
            await self._seek()
        finally:
            if self.held and self._broker.client.is_connected:
                self._revision = 0
                with suppress(*AWAY):
                    await (await self._broker.bucket(self._ttl)).delete(self._what)

    async def _seek(self) -> None:
        bucket: KeyValue | None = None
        while True:
            raise_if_cancelled()
            try:
                bucket = bucket or await self._broker.bucket(self._ttl)
                await self._renew(bucket)
            except AWAY as error:
                # Not known; another one may have it by now.
                _logger.warning("no lease", what=self._what, error=f"{type(error).__name__}: {error}")
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
            # Ours, where the answer to us was lost, or NATS was away.
            self._revision = entry.revision or 0 if entry.value == self._name.encode() else 0
        if held != self.held:
            _logger.info("leads" if self.held else "leads no more", what=self._what)
