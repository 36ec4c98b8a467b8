"""Caches the registry's resolutions of words until its watch reports a change.

Pure: no grpc, the time is passed in. A cached resolution is as old as the last bookmark of the watch, since the watch
misses no change.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar

M = TypeVar("M")
# Limit for another tenant's word: its grant may have been withdrawn while the watch was disconnected.
FOREIGN_LIMIT_S = 60.0


@dataclass(frozen=True)
class Key:
    """A word as written in a prompt of the tenant `asking`; `owner` and `concept` are the concept that it refers to."""

    asking: str
    word: str
    owner: str
    concept: str

    @property
    def foreign(self) -> bool:
        return self.asking != self.owner


class ResolutionCache(Generic[M]):
    """The newest resolutions of at most `limit` words. Times are seconds on the clock of `now`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[Key, M] = OrderedDict()
        self._by_concept: dict[tuple[str, str], set[Key]] = {}
        self._open_queries: list[set[tuple[str, str]]] = []
        self._confirmed_at = -inf
        # Set by the watch while its stream is broken: a call to the registry would most likely only time out.
        self.disconnected = False

    def __len__(self) -> int:
        return len(self._entries)

    def age_s(self, now: float) -> float:
        """Seconds since the watch's last bookmark; infinite before the first one."""
        return now - self._confirmed_at

    def reset(self) -> None:
        """Drops everything: the watch starts without a token and cannot report earlier changes."""
        self._entries.clear()
        self._by_concept.clear()
        self._confirmed_at = -inf
        for changed in self._open_queries:
            changed.add(_EVERYTHING)

    def mark_fresh(self, now: float) -> None:
        """The watch has sent a bookmark: all changes up to `now` are reported."""
        self._confirmed_at = now

    def invalidate(self, owner: str, concept: str) -> None:
        """Drops the resolutions of a changed concept."""
        for changed in self._open_queries:
            changed.add((owner, concept))
        for key in self._by_concept.pop((owner, concept), ()):
            del self._entries[key]

    def get(self, key: Key, now: float, limit_s: float) -> M | None:
        """The resolution of `key`; None if it is not cached or may be older than `limit_s`."""
        if key.foreign:
            limit_s = min(limit_s, FOREIGN_LIMIT_S)
        resolution = self._entries.get(key)
        if resolution is None or self.age_s(now) > limit_s:
            return None
        self._entries.move_to_end(key)
        return resolution

    @contextmanager
    def query(self) -> Iterator["Query[M]"]:
        """A context for one call to the registry. A response that raced with an invalidation is not cached."""
        changed: set[tuple[str, str]] = set()
        self._open_queries.append(changed)
        try:
            yield Query(self, changed)
        finally:
            # By identity: two queries may have equal sets.
            self._open_queries = [other for other in self._open_queries if other is not changed]

    def _put(self, key: Key, resolution: M) -> None:
        self._entries[key] = resolution
        self._entries.move_to_end(key)
        self._by_concept.setdefault((key.owner, key.concept), set()).add(key)
        while len(self._entries) > self._limit:
            oldest, _ = self._entries.popitem(last=False)
            keys = self._by_concept[oldest.owner, oldest.concept]
            keys.discard(oldest)
            if not keys:
                del self._by_concept[oldest.owner, oldest.concept]


class Query(Generic[M]):
    """One call to the registry. `changed` collects the concepts that change while it runs."""

    def __init__(self, resolutions: ResolutionCache[M], changed: set[tuple[str, str]]) -> None:
        self._resolutions = resolutions
        self._changed = changed

    def keep(self, answers: Iterable[tuple[Key, M]]) -> None:
        """Caches the answers whose concepts have not changed since the call began."""
        for key, resolution in answers:
            if _EVERYTHING not in self._changed and (key.owner, key.concept) not in self._changed:
                self._resolutions._put(key, resolution)


_EVERYTHING = ("", "")
