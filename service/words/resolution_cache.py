"""What words mean, as far as the registry has told: kept until its watch says that something about them changed.

Pure: no grpc, the time handed in. A meaning is as old as the last message of the watch, since the watch misses nothing.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar

M = TypeVar("M")
# Another tenant's word: its grant may have been withdrawn without our having heard.
FOREIGN_LIMIT_S = 60.0


@dataclass(frozen=True)
class Key:
    """A word as a tenant's prompt says it. `owner` and `concept` are whose word it is."""

    asking: str
    word: str
    owner: str
    concept: str

    @property
    def foreign(self) -> bool:
        return self.asking != self.owner


class ResolutionCache(Generic[M]):
    """The newest meanings of at most `limit` words. Times are seconds on the clock of `now`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[Key, M] = OrderedDict()
        self._by_concept: dict[tuple[str, str], set[Key]] = {}
        self._asking: list[set[tuple[str, str]]] = []
        self._fresh_at = -inf
        # Set by the watch: its stream is broken, so asking the registry would most likely only take time.
        self.disconnected = False

    def __len__(self) -> int:
        return len(self._kept)

    def age_s(self, now: float) -> float:
        """Seconds since the watch last spoke; infinite while it has not begun."""
        return now - self._fresh_at

    def reset(self) -> None:
        """The watch begins anew and knows nothing of what was before."""
        self._kept.clear()
        self._by_concept.clear()
        self._fresh_at = -inf
        for changed in self._asking:
            changed.add(_ANYTHING)

    def mark_fresh(self, now: float) -> None:
        """The watch has spoken: up to now everything is told."""
        self._fresh_at = now

    def invalidate(self, owner: str, concept: str) -> None:
        """Something about a concept changed."""
        for changed in self._asking:
            changed.add((owner, concept))
        for key in self._by_concept.pop((owner, concept), ()):
            del self._kept[key]

    def get(self, key: Key, now: float, limit_s: float) -> M | None:
        """What `key` means, unless nothing is kept or what is kept may be older than `limit_s`."""
        if key.foreign:
            limit_s = min(limit_s, FOREIGN_LIMIT_S)
        resolution = self._kept.get(key)
        if resolution is None or self.age_s(now) > limit_s:
            return None
        self._kept.move_to_end(key)
        return resolution

    @contextmanager
    def query(self) -> Iterator["Query[M]"]:
        """While the registry is asked: what it answers is kept unless the watch tells of a change meanwhile."""
        changed: set[tuple[str, str]] = set()
        self._asking.append(changed)
        try:
            yield Query(self, changed)
        finally:
            # By identity: equal sets are of different askers.
            self._asking = [other for other in self._asking if other is not changed]

    def _keep(self, key: Key, resolution: M) -> None:
        self._kept[key] = resolution
        self._kept.move_to_end(key)
        self._by_concept.setdefault((key.owner, key.concept), set()).add(key)
        while len(self._kept) > self._limit:
            oldest, _ = self._kept.popitem(last=False)
            keys = self._by_concept[oldest.owner, oldest.concept]
            keys.discard(oldest)
            if not keys:
                del self._by_concept[oldest.owner, oldest.concept]


class Query(Generic[M]):
    """Answers of one question to the registry."""

    def __init__(self, resolutions: ResolutionCache[M], changed: set[tuple[str, str]]) -> None:
        self._resolutions = resolutions
        self._changed = changed

    def keep(self, answers: Iterable[tuple[Key, M]]) -> None:
        """Keeps those about which nothing has changed since the question was asked."""
        for key, resolution in answers:
            if _ANYTHING not in self._changed and (key.owner, key.concept) not in self._changed:
                self._resolutions._keep(key, resolution)


_ANYTHING = ("", "")
