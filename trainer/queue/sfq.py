"""Chooses which queued job is dispatched next. Pure: no torch, no grpc, no clock.

Start-time fair queueing between tenants (Goyal, Vin and Cheng 1996), in a virtual time that counts rows. A job's start
tag is the finish tag of its tenant's last job or the current virtual time, whichever is later; the job with the lowest
start tag is next. A new tenant is therefore next and gets no credit for the time before, and a long job is charged all
its rows. Deficit round robin, which divides a tick's rows (trainer.worker.drr), would need a quantum as large as the
longest job.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.evaluation.plan import cost_rows

# A job's row, as trainer.jobs.tables has it.
Job = Mapping[str, Any]


class StartTimeFairQueue:
    """The queued jobs of one base model."""

    def __init__(self) -> None:
        self._jobs: Mapping[str, Job] = {}
        # Finish tag of each tenant's last job, and start tag of the last dispatched job; in rows.
        self._finish_tags: dict[str, int] = {}
        self._virtual_time = 0

    def wait(self, jobs: Sequence[Job]) -> None:
        """Replaces the queued jobs by `jobs`."""
        self._jobs = {job["name"]: job for job in jobs}

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def ordinary(self) -> bool:
        """Whether a job with a priority of 0 or more is queued."""
        return any(job["priority"] >= 0 for job in self._jobs.values())

    def first(self) -> str:
        """Removes the next job and returns its name: of the tenant with the lowest start tag, the oldest job of the
        highest priority; a job with a priority below 0 only if no other is queued. The queue must not be empty."""
        ordinary = [job for job in self._jobs.values() if job["priority"] >= 0]
        job = min(ordinary or self._jobs.values(), key=self._rank)
        tenant = job["tenant"]
        self._virtual_time = self._start_tag(tenant)
        self._finish_tags = {other: tag for other, tag in self._finish_tags.items() if tag > self._virtual_time}
        self._finish_tags[tenant] = self._virtual_time + _rows(job["spec"])
        self._jobs = {name: other for name, other in self._jobs.items() if other is not job}
        name: str = job["name"]
        return name

    def _start_tag(self, tenant: str) -> int:
        return max(self._virtual_time, self._finish_tags.get(tenant, 0))

    def _rank(self, job: Job) -> tuple[int, int, int, str]:
        return self._start_tag(job["tenant"]), -job["priority"], job["created_us"], job["name"]


def _rows(spec: Mapping[str, Any]) -> int:
    """The cost of a job in rows."""
    if "evaluates" in spec:
        return cost_rows()
    return int(spec["recipe"]["steps"] * spec["recipe"]["rows"])


def trade(waiting: Sequence[Job], running: Sequence[Job]) -> tuple[Job, Job] | None:
    """While no worker has a free place: the waiting job that should get one, and the running job that should yield its
    own; None if no exchange is due. The newest running job below priority 0 yields to the oldest waiting job of another
    priority. Otherwise the newest job of the tenant with the most running jobs yields to the oldest waiting job of a
    tenant with none. Long jobs of one tenant therefore do not block the other tenants."""
    eligible = [job for job in waiting if job["priority"] >= 0 and not job["worker_deaths"]]
    low = [job for job in running if job["priority"] < 0]
    if eligible and low:
        return min(eligible, key=lambda job: job["created_us"]), max(low, key=lambda job: job["started_us"])
    held = Counter(job["tenant"] for job in running)
    without = [job for job in eligible if job["tenant"] not in held]
    if not without or not held:
        return None
    tenant, count = held.most_common(1)[0]
    if count < 2:
        return None
    own = [job for job in running if job["tenant"] == tenant]
    return min(without, key=lambda job: job["created_us"]), max(own, key=lambda job: job["started_us"])
