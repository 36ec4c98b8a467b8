"""Random faults, one after another: of the connections to the store, and of the processes."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tests.robustness.cluster import REPLICAS, Cluster, relay_name

Held = Callable[[], Awaitable[None]]

# By their names in toxiproxy. `timeout` 0 drops all data until it is removed, and then closes the connection.
_TOXICS: Mapping[str, Callable[[random.Random], dict[str, Any]]] = {
    "bandwidth": lambda chance: {"rate": chance.randint(1, 16)},  # KB/s
    "latency": lambda chance: {"latency": chance.randint(20, 400), "jitter": chance.randint(0, 200)},  # ms
    "limit_data": lambda chance: {"bytes": chance.randint(100, 20_000)},  # then the connection is closed
    "reset_peer": lambda chance: {"timeout": chance.randint(0, 200)},
    "slicer": lambda chance: {"average_size": 64, "size_variation": 32, "delay": 500},
    "timeout": lambda chance: {"timeout": 0},
}


class Faults:
    """Causes faults on a cluster until it is stopped; then all faults are removed. `done` counts them by kind."""

    def __init__(self, cluster: Cluster, chance: random.Random, *, longest_s: float) -> None:
        """`longest_s`: the maximum duration of a fault."""
        self._cluster = cluster
        self._chance = chance
        self._longest_s = longest_s
        self.done: Counter[str] = Counter()

    async def run(self, stop: asyncio.Event) -> None:
        """Two at a time: a fault of the network and a fault of a process. Each kind comes once in each round."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._each(stop, {"cut": self._cut, "drop": self._drop, **self._toxics()}))
            processes = {"kill": self._kill, "forget": self._forget, "pause": self._pause, "store": self._store}
            group.create_task(self._each(stop, processes))
        self._cluster.toxiproxy.call("POST", "/reset")

    async def _each(self, stop: asyncio.Event, kinds: Mapping[str, Held]) -> None:
        order = list(kinds)
        while not stop.is_set():
            self._chance.shuffle(order)
            for kind in order:
                if stop.is_set():
                    break
                await asyncio.sleep(self._chance.uniform(0.05, 0.5))
                await kinds[kind]()
                self.done[kind] += 1

    def _toxics(self) -> dict[str, Held]:
        def held(kind: str) -> Held:
            return lambda: self._toxic(kind)

        return {kind: held(kind) for kind in _TOXICS}

    async def _hold(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.2, self._longest_s))

    def _some(self) -> list[int]:
        """One, two or all replicas."""
        return self._chance.sample(range(REPLICAS), self._chance.randint(1, REPLICAS))

    async def _toxic(self, kind: str) -> None:
        call, hit = self._cluster.toxiproxy.call, self._some()
        for number in hit:
            stream = self._chance.choice(["upstream", "downstream"])
            toxic = {"name": kind, "type": kind, "stream": stream, "attributes": _TOXICS[kind](self._chance)}
            await asyncio.to_thread(call, "POST", f"/proxies/{relay_name(number)}/toxics", toxic)
        await self._hold()
        for number in hit:
            await asyncio.to_thread(call, "DELETE", f"/proxies/{relay_name(number)}/toxics/{kind}")

    async def _cut(self) -> None:
        call, hit = self._cluster.toxiproxy.call, self._some()
        for enabled in (False, True):
            for number in hit:
                await asyncio.to_thread(call, "POST", f"/proxies/{relay_name(number)}", {"enabled": enabled})
            if not enabled:
                await self._hold()

    async def _drop(self) -> None:
        for relay in self._cluster.relays:
            relay.share = self._chance.uniform(0.1, 0.9)
        await self._hold()
        for relay in self._cluster.relays:
            relay.share = 0.0

    async def _kill(self) -> None:
        await self._cluster.restart(self._chance.randrange(REPLICAS), lose_views=False)

    async def _forget(self) -> None:
        await self._cluster.restart(self._chance.randrange(REPLICAS), lose_views=True)

    async def _pause(self) -> None:
        await self._cluster.pause(self._chance.randrange(REPLICAS), self._chance.uniform(0.2, self._longest_s))

    async def _store(self) -> None:
        await self._cluster.restart_store(self._chance.uniform(0.0, self._longest_s / 2))
