"""Chooses the jobs whose rows make up the next tick. Pure: no torch, no grpc, no clock.

Deficit round robin between tenants (Shreedhar and Varghese 1995) with a quantum that a usual job fits into: jobs finish
one after the other instead of all together at the end, and a tenant that has used its quantum waits until every other
tenant has used its own. As in FQ-CoDel (RFC 8290, section 4.1) a new tenant is served once before the old ones.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A job that can use rows. Among a tenant's jobs the highest `priority` is first, then the lowest `order`. A job
    with a priority below 0 gets rows only while no tenant has another job."""

    tenant: str
    priority: int
    order: int


class DeficitRoundRobin:
    """The jobs in training, and the division of a tick's rows between them."""

    def __init__(self, *, quantum_rows: int) -> None:
        """A tenant is granted `quantum_rows` rows before the next tenant's turn. Tenants get equal rows only if a
        quantum is at least as large as what a tick grants to one tenant."""
        self._quantum = quantum_rows
        self._jobs: dict[str, Entry] = {}
        self._new: deque[str] = deque()
        self._old: deque[str] = deque()
        # Rows left of each tenant's quantum; below 0 if a tick granted more.
        self._credit: dict[str, int] = {}

    def join(self, name: str, entry: Entry) -> None:
        """Adds a job, which can use rows from now on."""
        self._jobs[name] = entry
        if entry.tenant not in self._credit:
            self._credit[entry.tenant] = self._quantum
            self._new.append(entry.tenant)

    def leave(self, name: str) -> None:
        """Removes a job. A tenant without jobs keeps its place in the round until its turn comes, so that leaving and
        joining again brings no advantage."""
        entry = self._jobs.pop(name, None)
        if entry is not None and entry.tenant in self._new and not self._jobs_of(entry.tenant):
            self._new.remove(entry.tenant)
            self._old.append(entry.tenant)

    def grant(self, wanted: Mapping[str, int], limit: int) -> dict[str, int]:
        """The rows of the next tick by job; they are charged to the jobs' tenants.

        `wanted` is the number of rows that each job can use. Up to `limit` rows are granted in total. The first job
        gets all that it wants even beyond `limit`, so that a measured limit never cuts a job that trains alone.
        """
        ordinary = {name for name in wanted if self._jobs[name].priority >= 0}
        eligible = {name for name in ordinary or wanted if wanted[name] > 0}
        granted: dict[str, int] = {}
        left = limit
        while eligible and (left > 0 or not granted):
            # A tenant's second job comes after every other tenant's first one.
            for tenant in self._round({self._jobs[name].tenant for name in eligible}):
                name = min((name for name in self._jobs_of(tenant) if name in eligible), key=self._rank)
                rows = wanted[name] if not granted else min(wanted[name], left)
                granted[name] = rows
                eligible.remove(name)
                self._credit[tenant] -= rows
                left -= rows
                if left <= 0:
                    break
        return granted

    def _round(self, wanting: set[str]) -> list[str]:
        """The tenants in `wanting` in the order of their turns. A tenant whose credit is used up moves to the end with
        new credit; a tenant without jobs is removed."""
        for queue in (self._new, self._old):
            for tenant in list(queue):
                if not self._jobs_of(tenant):
                    queue.remove(tenant)
                    del self._credit[tenant]
                elif self._credit[tenant] <= 0:
                    queue.remove(tenant)
                    self._credit[tenant] += self._quantum
                    self._old.append(tenant)
        return [tenant for tenant in (*self._new, *self._old) if tenant in wanting]

    def _jobs_of(self, tenant: str) -> list[str]:
        return [name for name, entry in self._jobs.items() if entry.tenant == tenant]

    def _rank(self, name: str) -> tuple[int, int, str]:
        entry = self._jobs[name]
        return -entry.priority, entry.order, name
