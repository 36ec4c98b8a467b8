"""Decides when a preview of a job is due, from the intervals that its watchers have requested. Pure.

A preview blocks the device for every job, so all previews together get at most a tenth of its time.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_MAX_PREVIEW_SHARE = 0.1  # maximum share of the device's time


class PreviewThrottle:
    """The previews that watchers have requested. Times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._wanted: dict[str, list[float]] = {}
        self._drawn_at: dict[str, float] = {}
        self._rest_until = 0.0

    @contextmanager
    def wanted(self, job: str, interval_s: float) -> Iterator[None]:
        """A watcher wants a preview of `job` every `interval_s`, until the context ends."""
        self._wanted.setdefault(job, []).append(interval_s)
        try:
            yield
        finally:
            self._wanted[job].remove(interval_s)
            if not self._wanted[job]:
                del self._wanted[job]
                self._drawn_at.pop(job, None)

    def intervals(self) -> Mapping[str, float]:
        """Jobs with a watcher that wants previews, and the shortest interval that was requested, in seconds."""
        return {job: min(intervals) for job, intervals in self._wanted.items()}

    def due(self, job: str, now: float) -> bool:
        """Whether `job`'s next preview should be drawn now; its first one is due immediately."""
        intervals = self._wanted.get(job)
        if not intervals or now < self._rest_until:
            return False
        return now - self._drawn_at.get(job, float("-inf")) >= min(intervals)

    def drawn(self, job: str, began: float, ended: float) -> None:
        """Records that a preview of `job` occupied the device from `began` to `ended`."""
        if job in self._wanted:
            self._drawn_at[job] = ended
        self._rest_until = ended + (ended - began) * (1 - _MAX_PREVIEW_SHARE) / _MAX_PREVIEW_SHARE
