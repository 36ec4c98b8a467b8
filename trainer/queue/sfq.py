"""Whose waiting job is handed out next. Pure: no torch, no grpc, no clock.

Start-time fair queueing between tenants (Goyal, Vin and Cheng 1996): a job begins, in rows, where its tenant's last one
ended or where the others are by now, whichever is later; the one that begins first is next. So a tenant that comes is
next at once and is owed nothing for the time before, and long jobs cost what they take. Deficit round robin, which
shares out a tick's rows (trainer.worker.drr), would need a quantum that the longest job fits into.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.evaluation.plan import cost_rows

# A job's row, as trainer.jobs.tables has it.
Job = Mapping[str, Any]


class StartTimeFairQueue:
    """Those that wait for one base model."""

    def __init__(self) -> None:
        self._jobs: Mapping[str, Job] = {}
        # Where the last job of a tenant ends, and where the newest job that was handed out began; in rows.
        self._ends: dict[str, int] = {}
        self._now = 0

    def wait(self, jobs: Sequence[Job]) -> None:
        """These wait, and no others."""
        self._jobs = {job["name"]: job for job in jobs}

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def ordinary(self) -> bool:
        """Whether one with a priority of 0 or more waits."""
        return any(job["priority"] >= 0 for job in self._jobs.values())

    def first(self) -> str:
        """The next one, which waits no more: of the tenant that is first, the oldest of the highest priority;
        priorities below 0 only when no other waits. There must be one."""
        ordinary = [job for job in self._jobs.values() if job["priority"] >= 0]
        job = min(ordinary or self._jobs.values(), key=self._rank)
        tenant = job["tenant"]
        self._now = self._begin(tenant)
        self._ends = {other: end for other, end in self._ends.items() if end > self._now}
        self._ends[tenant] = self._now + _rows(job["spec"])
        self._jobs = {name: other for name, other in self._jobs.items() if other is not job}
        name: str = job["name"]
        return name

    def _begin(self, tenant: str) -> int:
        return max(self._now, self._ends.get(tenant, 0))

    def _rank(self, job: Job) -> tuple[int, int, int, str]:
        return self._begin(job["tenant"]), -job["priority"], job["created_us"], job["name"]


def _rows(spec: Mapping[str, Any]) -> int:
    """What a job costs."""
    if "evaluates" in spec:
        return cost_rows()
    return int(spec["recipe"]["steps"] * spec["recipe"]["rows"])


def trade(waiting: Sequence[Job], running: Sequence[Job]) -> tuple[Job, Job] | None:
    """Where no worker has a place: the job that should have one, and the one that should give its own. The newest
    below priority 0 gives it to the oldest other; else the newest of the tenant that has most to the oldest of a tenant
    that has none running. So long jobs of one tenant do not keep the others waiting."""
    able = [job for job in waiting if job["priority"] >= 0 and not job["worker_deaths"]]
    low = [job for job in running if job["priority"] < 0]
    if able and low:
        return min(able, key=lambda job: job["created_us"]), max(low, key=lambda job: job["started_us"])
    held = Counter(job["tenant"] for job in running)
    without = [job for job in able if job["tenant"] not in held]
    if not without or not held:
        return None
    tenant, count = held.most_common(1)[0]
    if count < 2:
        return None
    own = [job for job in running if job["tenant"] == tenant]
    return min(without, key=lambda job: job["created_us"]), max(own, key=lambda job: job["started_us"])
