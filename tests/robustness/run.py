"""One run: clients and watchers on three replicas over one MinIO, under random faults, and the verdict of the checkers.

python -m tests.robustness.run --minutes 10 [--seed N]
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT, find_program
from tests.robustness.clients import Replicas, use
from tests.robustness.cluster import Cluster
from tests.robustness.faults import Faults
from tests.robustness.history import OK, UNKNOWN, History
from tests.robustness.verdict import Verdict, judged

_CLIENTS = 8


@dataclass(frozen=True, kw_only=True)
class Run:
    """The history and its verdict. `faults`: how many of each kind; `dropped`: how many responses were lost."""

    history: History
    verdict: Verdict
    faults: dict[str, int]
    dropped: int

    def __str__(self) -> str:
        history = self.history
        messages = sum(len(watched.messages) for watched in history.watches)
        return (
            f"seed {history.seed}: {len(history.operations)} operations, {history.count(OK)} done, "
            f"{history.count(UNKNOWN)} unknown; {messages} messages to {len(history.watches)} watchers; faults: "
            f"{', '.join(f'{count} {kind}' for kind, count in sorted(self.faults.items()))}; "
            f"{self.dropped} responses dropped"
        )


async def run(seed: int, seconds: float, folder: Path, out: Path, *, longest_s: float = 1.0) -> Run:
    """Uses a cluster for so many seconds. `folder` is for data, `out` for the history and drawings of faults.

    `longest_s`: the maximum duration of a fault. The seed determines the attempts, not their outcomes.
    """
    history = History(seed=seed)
    chance = random.Random(seed)
    stop = asyncio.Event()
    minio, toxiproxy = find_program("minio"), find_program("toxiproxy")
    assert minio is not None and toxiproxy is not None
    async with Cluster(minio, toxiproxy, folder, chance) as cluster:
        faults = Faults(cluster, random.Random(chance.random()), longest_s=longest_s)
        replicas = Replicas(cluster.addresses)

        async def harm() -> None:
            calm = asyncio.Event()
            harming = asyncio.create_task(faults.run(calm))
            await asyncio.wait({harming}, timeout=seconds)
            calm.set()
            await harming
            stop.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(harm())
            group.create_task(use(replicas, history, stop, clients=_CLIENTS))
        await replicas.close()
        store = cluster.place.open()
        verdict = await asyncio.to_thread(judged, history, store, out)
        store.close()
        dropped = sum(relay.dropped for relay in cluster.relays)
    return Run(history=history, verdict=verdict, faults=dict(faults.done), dropped=dropped)


def main() -> int:
    """Prints the seed first; ends with status 1 if the history is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    given = parser.parse_args()
    out = ROOT / "out" / f"robustness-{given.seed}"
    sys.stdout.write(f"seed {given.seed}, {given.minutes:g} minutes\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="pseudoword-robustness-") as folder:
        found = asyncio.run(run(given.seed, given.minutes * 60, Path(folder), out, longest_s=5.0))
    sys.stdout.write(f"{found}\n")
    if found.verdict.sound:
        sys.stdout.write("sound\n")
        return 0
    sys.stdout.write(f"{found.verdict}\nNOT SOUND: {out}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
