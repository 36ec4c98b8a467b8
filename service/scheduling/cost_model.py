"""Predicts the time of a denoiser call from its rows and shape. Pure: times are passed in.

Measured at warm-up for a few numbers of rows, and by every call since. Times are interpolated linearly between measured
numbers of rows, and extrapolated beyond the largest one in proportion to the rows.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence

Shape = tuple[int, int]

_EWMA_WEIGHT = 0.2  # weight of the newest call in the smoothed time
_FREE_TIME_FACTOR = 1.05  # a call may take this much longer to include background rows
_STALE_CALLS = 32  # calls after which an unused number of rows is tried again
_WORTHWHILE_RATE = 0.97  # fraction of the best measured rate that suffices: more rows only lengthen every call


class StepCostModel:
    """One model's step times. `base` is the shape that is measured at warm-up. Another shape's times are the base's,
    scaled by the ratio of the areas, until calls of that shape are measured."""

    def __init__(self, base: Shape) -> None:
        self._base = base
        self._times: dict[Shape, dict[int, float]] = {base: {}}
        # The number of calls of each shape, and its value when a number of rows was last measured, and last tried.
        self._calls: Counter[Shape] = Counter()
        self._measured_at: dict[tuple[Shape, int], int] = {}
        self._tried_at: dict[tuple[Shape, int], int] = {}

    def observe(self, shape: Shape, rows: int, seconds: float) -> None:
        """Records that a call of `rows` rows took `seconds`."""
        times = self._times.setdefault(shape, {})
        before = times.get(rows)
        self._calls[shape] += 1
        now = self._calls[shape]
        if before is None or now - self._measured_at.get((shape, rows), now) > _STALE_CALLS:
            times[rows] = seconds  # an old measurement may be from a machine under another load
        else:
            times[rows] = before + _EWMA_WEIGHT * (seconds - before)
        self._measured_at[shape, rows] = self._tried_at[shape, rows] = now

    def table(self, shape: Shape) -> Mapping[int, float]:
        """The measured times of `shape`: rows to seconds."""
        return dict(sorted(self._times.get(shape, {}).items()))

    def seconds(self, shape: Shape, rows: int) -> float:
        """The expected seconds of a call; 0 before the first measurement."""
        own = self._times.get(shape)
        if own:
            return _between(own, rows)
        area = shape[0] * shape[1] / (self._base[0] * self._base[1])
        return _between(self._times[self._base], rows) * area

    def useful_rows(self, shape: Shape, limit: int) -> int:
        """The smallest number of rows whose rate (rows a second) is nearly the best of all numbers up to `limit`."""
        sizes = [rows for rows in self._sizes(shape) if rows <= limit] or [limit]
        rates = [rows / (self.seconds(shape, rows) or 1.0) for rows in sizes]
        best = max(rates)
        return next(rows for rows, rate in zip(sizes, rates, strict=True) if rate >= _WORTHWHILE_RATE * best)

    def tried_rows(self, shape: Shape, limit: int) -> int:
        """As useful_rows, but every _STALE_CALLS calls at least twice as many, up to `limit`. A number of rows that was
        slow at warm-up because the machine was busy would otherwise never be measured again."""
        useful = self.useful_rows(shape, limit)
        more = next((rows for rows in self._sizes(shape) if 2 * useful <= rows <= limit), useful)
        now = self._calls[shape]
        if more == useful or now - self._tried_at.get((shape, more), 0) < _STALE_CALLS:
            return useful
        self._tried_at[shape, more] = now
        return more

    def free_rows(self, shape: Shape, rows: int, limit: int) -> int:
        """The largest number of rows up to `limit` whose call takes at most _FREE_TIME_FACTOR times as long as one of
        `rows`; at least `rows`."""
        allowed_s = self.seconds(shape, rows) * _FREE_TIME_FACTOR
        return max(
            [rows, *(more for more in self._sizes(shape) if more <= limit and self.seconds(shape, more) <= allowed_s)]
        )

    def solo_s(self, shape: Shape, *, pictures: int, rows: int, calls: int, limit: int) -> float:
        """Expected seconds to draw `pictures`, of `rows` rows and `calls` calls each, alone on the model."""
        at_once = max(1, min(pictures, max(self.useful_rows(shape, limit), rows) // rows))
        full, rest = divmod(pictures, at_once)
        round_s = full * self.seconds(shape, at_once * rows) + (self.seconds(shape, rest * rows) if rest else 0.0)
        return calls * round_s

    def _sizes(self, shape: Shape) -> Sequence[int]:
        return sorted({*self._times[self._base], *self._times.get(shape, {})})


def _between(times: dict[int, float], rows: int) -> float:
    known = sorted(times)
    if not known:
        return 0.0
    place = bisect_left(known, rows)
    if place == len(known):
        return times[known[-1]] * rows / known[-1]
    upper = known[place]
    if upper == rows or place == 0:
        # Below the smallest measured number of rows: its time is the lower bound.
        return times[upper]
    lower = known[place - 1]
    share = (rows - lower) / (upper - lower)
    return times[lower] + share * (times[upper] - times[lower])
