"""Three registries on one MinIO, each behind two relays that cause faults: toxiproxy, and a relay that loses
responses."""

import asyncio
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import urllib3

from tests.conftest import Minio, Place, free_port
from tests.processes import Process
from tests.robustness.dropping import Dropping

REPLICAS = 3
_START_S = 20


class Toxiproxy:
    """The program toxiproxy, controlled over its HTTP interface."""

    def __init__(self, binary: Path, folder: Path) -> None:
        port = free_port()
        self._command = [str(binary), "-host", "127.0.0.1", "-port", str(port)]
        self._log = folder / "toxiproxy.log"
        self._url = f"http://127.0.0.1:{port}"
        self._pool = urllib3.PoolManager(retries=False, timeout=10)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it responds."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        end = time.monotonic() + _START_S
        while True:
            try:
                self.call("GET", "/version")
                return
            except urllib3.exceptions.HTTPError:
                assert time.monotonic() < end, self._log.read_text()
                time.sleep(0.02)

    def relay(self, name: str, target: str) -> str:
        """The address of a new relay to `target`."""
        address = f"127.0.0.1:{free_port()}"
        self.call("POST", "/proxies", {"name": name, "listen": address, "upstream": target, "enabled": True})
        return address

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> None:
        """Calls its interface; the call must succeed."""
        answer = self._pool.request(method, self._url + path, body=None if body is None else json.dumps(body))
        assert answer.status < 300, f"{method} {path} {body}: {answer.status} {answer.data!r}"

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._pool.clear()


class Cluster:
    """async with Cluster(minio, toxiproxy, folder, chance) as cluster: cluster.addresses"""

    def __init__(self, minio: Path, toxiproxy: Path, folder: Path, chance: random.Random) -> None:
        """`minio` and `toxiproxy` are the programs; `folder` is for data and logs."""
        self._folder = folder
        self._chance = chance
        self.minio = Minio(minio, _made(folder / "minio"))
        self.toxiproxy = Toxiproxy(toxiproxy, folder)
        self.relays: list[Dropping] = []
        self.replicas: list[Process] = []
        # The store without the relays.
        self.place = Place(address=f"s3://{self.minio.bucket}", access=self.minio.access)

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self.minio.start)
            await asyncio.to_thread(self.toxiproxy.start)
            for number in range(REPLICAS):
                target = self.toxiproxy.relay(relay_name(number), self.minio.access.endpoint)
                relay = Dropping(target, random.Random(self._chance.random()))
                await relay.start()
                self.relays.append(relay)
                self.replicas.append(self._replica(number, relay))
            await asyncio.gather(*(asyncio.to_thread(replica.start) for replica in self.replicas))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for replica in self.replicas:
            replica.__exit__()
        for relay in self.relays:
            await relay.close()
        self.toxiproxy.kill()
        self.minio.kill()

    @property
    def addresses(self) -> list[str]:
        return [replica.address for replica in self.replicas]

    def _replica(self, number: int, relay: Dropping) -> Process:
        folder = _made(self._folder / relay_name(number))
        environment = {
            **self.place.environment,
            "PSEUDOWORD_S3__ENDPOINT": relay.address,
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        arguments = ("--server.metrics-listen", "127.0.0.1:0", "--store.views", str(folder / "views"))
        return Process("registry", folder, *arguments, environment=environment)

    async def restart(self, number: int, *, lose_views: bool) -> None:
        """Kills a replica and starts it again at its address, with or without its views. Returns when it serves."""
        replica = self.replicas[number]
        replica.kill()
        if lose_views:
            shutil.rmtree(self._folder / relay_name(number) / "views")
        await asyncio.to_thread(replica.start)

    async def pause(self, number: int, seconds: float) -> None:
        """Suspends a replica."""
        self.replicas[number].signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.replicas[number].signal(signal.SIGCONT)

    async def restart_store(self, seconds: float) -> None:
        """Kills MinIO, and starts it again after `seconds`."""
        self.minio.kill()
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self.minio.start)


def relay_name(number: int) -> str:
    return f"replica-{number}"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
