"""Whose rows make the next tick. Pure: no torch, no grpc, no clock.

Deficit round robin between tenants (Shreedhar and Varghese 1995) with a quantum that a usual job fits into: jobs are
finished one after the other instead of all together at the end, and who has had a quantum waits until everybody else
has. As in FQ-CoDel (RFC 8290, section 4.1) a tenant that comes is served before those that have had theirs, once.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A job that wants rows. Among a tenant's own jobs the highest `priority` is first, then the lowest `order`; one
    below 0 gets rows only while no tenant has another."""

    tenant: str
    priority: int
    order: int


class DeficitRoundRobin:
    """The jobs that are trained, and the choice of those that get the rows of a tick."""

    def __init__(self, *, quantum_rows: int) -> None:
        """A tenant may have `quantum_rows` rows before the others have theirs."""
        self._quantum = quantum_rows
        self._jobs: dict[str, Entry] = {}
        self._new: deque[str] = deque()
        self._old: deque[str] = deque()
        # Rows that a tenant may still have in its turn; below 0 where a tick gave more.
        self._credit: dict[str, int] = {}

    def join(self, name: str, entry: Entry) -> None:
        """A job wants rows from now on."""
        self._jobs[name] = entry
        if entry.tenant not in self._credit:
            self._credit[entry.tenant] = self._quantum
            self._new.append(entry.tenant)

    def leave(self, name: str) -> None:
        """A job wants no more. A tenant without jobs keeps its place in the round until that comes, so that nobody is
        first again by leaving."""
        entry = self._jobs.pop(name, None)
        if entry is not None and entry.tenant in self._new and not self._of(entry.tenant):
            self._new.remove(entry.tenant)
            self._old.append(entry.tenant)

    def grant(self, wanted: Mapping[str, int], limit: int) -> dict[str, int]:
        """Rows of the next tick by job, booked to their tenants.

        `wanted` says how many rows a job can use. `limit` rows are given in all, where as many are wanted; but the
        first job gets all that it wants, so that a job alone is never cut by a limit that was measured.
        """
        ordinary = {name for name in wanted if self._jobs[name].priority >= 0}
        eligible = {name for name in ordinary or wanted if wanted[name] > 0}
        granted: dict[str, int] = {}
        left = limit
        while eligible and (left > 0 or not granted):
            # A tenant's second job comes after every other tenant's first one.
            for tenant in self._round({self._jobs[name].tenant for name in eligible}):
                name = min((name for name in self._of(tenant) if name in eligible), key=self._rank)
                rows = wanted[name] if not granted else min(wanted[name], left)
                granted[name] = rows
                eligible.remove(name)
                self._credit[tenant] -= rows
                left -= rows
                if left <= 0:
                    break
        return granted

    def _round(self, wanting: set[str]) -> list[str]:
        """The tenants in `wanting` in the order of their turns; whose credit is used up goes to the end with a new
        one, and who has no job any more is forgotten."""
        for queue in (self._new, self._old):
            for tenant in list(queue):
                if not self._of(tenant):
                    queue.remove(tenant)
                    del self._credit[tenant]
                elif self._credit[tenant] <= 0:
                    queue.remove(tenant)
                    self._credit[tenant] += self._quantum
                    self._old.append(tenant)
        return [tenant for tenant in (*self._new, *self._old) if tenant in wanting]

    def _of(self, tenant: str) -> list[str]:
        return [name for name, entry in self._jobs.items() if entry.tenant == tenant]

    def _rank(self, name: str) -> tuple[int, int, str]:
        entry = self._jobs[name]
        return -entry.priority, entry.order, name
