"""Pictures of how far a word is, for those who watch: who wants them how often, and when one is due. Pure.

A preview takes the device from every job, so all of them together get a tenth of its time.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_MAX_PREVIEW_SHARE = 0.1  # of the device's time


class PreviewThrottle:
    """What watchers want of jobs. Times are seconds on the caller's clock."""

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
        """Which jobs somebody wants to see, and how often."""
        return {job: min(intervals) for job, intervals in self._wanted.items()}

    def due(self, job: str, now: float) -> bool:
        """Whether `job`'s next preview should be drawn now: the first one at once."""
        intervals = self._wanted.get(job)
        if not intervals or now < self._rest_until:
            return False
        return now - self._drawn_at.get(job, float("-inf")) >= min(intervals)

    def drawn(self, job: str, began: float, ended: float) -> None:
        """A preview of `job` took the device from `began` to `ended`."""
        if job in self._wanted:
            self._drawn_at[job] = ended
        self._rest_until = ended + (ended - began) * (1 - _MAX_PREVIEW_SHARE) / _MAX_PREVIEW_SHARE
