"""Clients that use a few concepts concurrently, and watchers of their changes, on several replicas."""

import asyncio
import random
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from pseudoword.errors import PseudowordError
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1 import resources_pb2 as res
from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub

from registry.catalogue.state_machine import SHARDS
from storage.ledger.entry import Revision
from storage.ledger.ledger import shard_of
from tests.robustness import requests
from tests.robustness.history import NOTHING, OK, UNKNOWN, History, Operation, Watched, WatchMessage

TENANTS = ("tenants/shop", "tenants/mara")
# Limits of a partition: operations, and operations without a known outcome, before a new concept replaces it.
_MAX_OPERATIONS = 120
_MAX_UNKNOWN = 4
_CONCURRENT = 2
# This attempt certainly changed nothing.
_NOT_DONE = {"NOT_COMMITTED", "CONTENTION"}
_NO_RESPONSE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
}


class Words:
    """The concepts that are in use. Each is replaced after so many operations."""

    def __init__(self) -> None:
        self._made = 0
        self._now: dict[tuple[str, int], str] = {}
        self._begun: dict[str, int] = defaultdict(int)
        self._unknown: dict[str, int] = defaultdict(int)

    def pick(self, chance: random.Random) -> str:
        """A concept for one more operation."""
        place = (chance.choice(TENANTS), chance.randrange(_CONCURRENT))
        name = self._now.get(place)
        if name is None or self._begun[name] >= _MAX_OPERATIONS:
            self._made += 1
            name = self._now[place] = f"{place[0]}/concepts/word-{self._made}"
        self._begun[name] += 1
        return name

    def may_give_up(self, concept: str) -> bool:
        """Whether one more operation on it may stay without a known outcome; if so, it is counted."""
        if self._unknown[concept] >= _MAX_UNKNOWN:
            return False
        self._unknown[concept] += 1
        return True


class Replicas:
    """Channels to the replicas, which may be killed and restarted at their addresses."""

    def __init__(self, addresses: Sequence[str]) -> None:
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
        self._channels = [grpc.aio.insecure_channel(address, options=options) for address in addresses]
        self._stubs: list[Any] = [RegistryServiceStub(channel) for channel in self._channels]

    def any(self, chance: random.Random) -> Any:
        return chance.choice(self._stubs)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


class Client:
    """A client with one operation at a time."""

    def __init__(
        self, number: int, replicas: Replicas, words: Words, history: History, chance: random.Random, longest_s: float
    ) -> None:
        """`longest_s`: the longest deadline of a call."""
        self._number = number
        self._replicas = replicas
        self._words = words
        self._history = history
        self._chance = chance
        self._longest_s = longest_s
        self._known: dict[str, requests.Known] = defaultdict(requests.Known)

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until `stop` is set and the current operation has ended."""
        while not stop.is_set():
            concept = self._words.pick(self._chance)
            known = self._known[concept]
            kind, given = requests.choose(self._chance, known)
            operation = Operation(
                client=self._number, concept=concept, kind=kind, input=given, call=time.monotonic_ns()
            )
            if kind in requests.READS:
                operation.stale = kind == "get" and self._chance.random() < 0.2
            else:
                operation.request_id = str(uuid.UUID(int=self._chance.getrandbits(128)))
            await self._work(operation, known)
            if operation.end:
                self._history.operations.append(operation)

    async def _work(self, operation: Operation, known: requests.Known) -> None:
        message = requests.request(operation.kind, operation.concept, operation.input, operation.request_id)
        if operation.stale:
            message.max_staleness.CopyFrom(Duration(seconds=3600))
        doubt = False
        while True:
            try:
                found = await self._call(operation.kind, message)
            except grpc.aio.AioRpcError as failure:
                error = PseudowordError.from_call(failure)
                refused = error.reason in requests.REFUSALS
                if not refused and error.code not in _NO_RESPONSE and error.reason not in _NOT_DONE:
                    raise AssertionError(f"{operation}: {error.code.name} {error.reason} {error.message}") from failure
                if operation.kind in requests.READS and not refused:
                    return  # a failed read says nothing
                doubt = doubt or not (refused or error.reason in _NOT_DONE)
                if refused:
                    # An earlier attempt without a response may still take effect: see docs/registry.md.
                    operation.result = UNKNOWN if doubt else error.reason
                    requests.learn(known, operation.kind, requests.Answer(result=error.reason, output={}, revision=""))
                    break
                if self._chance.random() < 0.3 and (not doubt or self._words.may_give_up(operation.concept)):
                    operation.result = UNKNOWN if doubt else NOTHING
                    break
                await asyncio.sleep(self._chance.uniform(0, 0.3))
                continue
            requests.learn(known, operation.kind, found)
            operation.result, operation.output, operation.revision = found.result, found.output, found.revision
            break
        operation.end = time.monotonic_ns()
        if operation.request_id and operation.result == OK and self._chance.random() < 0.1:
            with suppress(grpc.aio.AioRpcError):
                found = await self._call(operation.kind, message)
                operation.again = {**found.output, "revision": found.revision}

    async def _call(self, kind: str, message: Any) -> requests.Answer:
        call = getattr(self._replicas.any(self._chance), requests.method(kind))
        answered = await call(message, timeout=self._chance.uniform(1.0, self._longest_s))
        return requests.answer(kind, answered)


class Watcher:
    """Watches `parent` from its beginning; each watch ends after a short time and is resumed on another replica."""

    def __init__(self, parent: str, token: str, replicas: Replicas, history: History, chance: random.Random) -> None:
        self._replicas = replicas
        self._chance = chance
        self._token = token
        self.watched = Watched(parent=parent, token=token)
        history.watches.append(self.watched)

    async def run(self, upto: "asyncio.Future[Sequence[Revision]]") -> None:
        """Runs until it has reached the revisions of `upto`, the last revision of each shard."""
        while not self._has_reached(upto):
            self.watched.lives += 1
            request = rpc.WatchEventsRequest(
                parent=self.watched.parent, resume_token=self._token, bookmark_interval=Duration(seconds=1)
            )
            call = self._replicas.any(self._chance).WatchEvents(request)
            ends = time.monotonic() + self._chance.uniform(0.3, 3.0)
            try:
                while time.monotonic() < ends and not self._has_reached(upto):
                    try:
                        async with asyncio.timeout(1.5):
                            message = await call.read()
                    except TimeoutError:
                        break
                    if message is grpc.aio.EOF:
                        break
                    self._note(message)
            except grpc.aio.AioRpcError as failure:
                assert failure.code() in _NO_RESPONSE, failure
                await asyncio.sleep(0.1)
            finally:
                call.cancel()
        self.watched.upto = [str(goal) for goal in self._goals(upto)]

    def _note(self, message: rpc.WatchEventsResponse) -> None:
        self._token = message.resume_token
        if message.WhichOneof("message") != "event":
            self.watched.messages.append(WatchMessage(token=self._token))
            return
        event = message.event
        recorded = WatchMessage(
            token=self._token,
            revision=event.revision,
            type=res.Event.Type.Name(event.type),
            resource=event.resource,
            version=event.version,
        )
        self.watched.messages.append(recorded)

    def _has_reached(self, upto: "asyncio.Future[Sequence[Revision]]") -> bool:
        return upto.done() and all(self._at[goal.shard].place >= goal.place for goal in self._goals(upto))

    def _goals(self, upto: "asyncio.Future[Sequence[Revision]]") -> list[Revision]:
        return [goal for goal in upto.result() if goal.shard in self._at]

    @property
    def _at(self) -> dict[int, Revision]:
        return {revision.shard: revision for revision in map(Revision.parse, self._token.split("."))}


async def use(
    replicas: Replicas, history: History, stop: asyncio.Event, *, clients: int, longest_s: float = 4.0
) -> None:
    """Runs `clients` clients, two watchers of each tenant and one of all, until `stop` is set and watches end."""
    chance = random.Random(history.seed)
    upto: asyncio.Future[Sequence[Revision]] = asyncio.get_running_loop().create_future()
    words = Words()
    (end, *_) = await _ends(replicas, chance)
    beginnings = [Revision(store_id=end.store_id, shard=shard, entry=0, index=0) for shard in range(SHARDS)]
    tenants = {tenant: beginnings[shard_of(tenant.removeprefix("tenants/"), SHARDS)] for tenant in TENANTS}

    def watcher(parent: str, *token: Revision) -> Watcher:
        joined = ".".join(str(revision) for revision in token)
        return Watcher(parent, joined, replicas, history, random.Random(chance.random()))

    async with asyncio.TaskGroup() as following:
        for tenant in (*TENANTS, *TENANTS):
            following.create_task(watcher(tenant, tenants[tenant]).run(upto))
        following.create_task(watcher("tenants/-", *beginnings).run(upto))
        async with asyncio.TaskGroup() as working:
            for number in range(clients):
                client = Client(number, replicas, words, history, random.Random(chance.random()), longest_s)
                working.create_task(client.run(stop))
        upto.set_result(await _ends(replicas, chance))
        for tenant in TENANTS:
            # A watcher that starts at the end and reads all changes together.
            following.create_task(watcher(tenant, tenants[tenant]).run(upto))


async def _ends(replicas: Replicas, chance: random.Random) -> list[Revision]:
    """The last revision of each tenant's shard."""
    ends = []
    for tenant in TENANTS:
        while True:
            try:
                listed = await replicas.any(chance).ListConcepts(rpc.ListConceptsRequest(parent=tenant), timeout=20)
            except grpc.aio.AioRpcError as failure:
                assert failure.code() in _NO_RESPONSE, failure
                await asyncio.sleep(0.2)
            else:
                ends.append(Revision.parse(listed.revision))
                break
    return ends
