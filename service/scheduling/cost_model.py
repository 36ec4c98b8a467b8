"""How long a call of the denoiser takes, by rows and shape. Pure: times are handed in.

Measured at warm-up for a few numbers of rows, and by every call since. Between two measured numbers a straight line
holds, beyond the greatest one its own time a row.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence

Shape = tuple[int, int]

_EWMA_WEIGHT = 0.2  # weight of the newest call in the smoothed time
_FREE_TIME_FACTOR = 1.05  # of a call's time: what it may take longer for the sake of those in the background
_STALE_CALLS = 32  # calls after which a number of rows is tried once more
_WORTHWHILE_RATE = 0.97  # of the best rate that was measured: more rows than give this only make everybody wait


class StepCostModel:
    """One model's step times. `base` is the shape that was measured at warm-up; another shape's times are the base's
    times the ratio of their areas, until its own calls tell."""

    def __init__(self, base: Shape) -> None:
        self._base = base
        self._times: dict[Shape, dict[int, float]] = {base: {}}
        # Calls of each shape, and at which of them a number of rows was last measured, or at least tried.
        self._calls: Counter[Shape] = Counter()
        self._measured_at: dict[tuple[Shape, int], int] = {}
        self._tried_at: dict[tuple[Shape, int], int] = {}

    def observe(self, shape: Shape, rows: int, seconds: float) -> None:
        """A call of `rows` rows took `seconds`."""
        times = self._times.setdefault(shape, {})
        before = times.get(rows)
        self._calls[shape] += 1
        now = self._calls[shape]
        if before is None or now - self._measured_at.get((shape, rows), now) > _STALE_CALLS:
            times[rows] = seconds  # what was measured long ago may have been another machine
        else:
            times[rows] = before + _EWMA_WEIGHT * (seconds - before)
        self._measured_at[shape, rows] = self._tried_at[shape, rows] = now

    def table(self, shape: Shape) -> Mapping[int, float]:
        """What was measured of `shape`: rows to seconds."""
        return dict(sorted(self._times.get(shape, {}).items()))

    def seconds(self, shape: Shape, rows: int) -> float:
        """What a call is expected to take; 0 while nothing was measured at all."""
        own = self._times.get(shape)
        if own:
            return _between(own, rows)
        area = shape[0] * shape[1] / (self._base[0] * self._base[1])
        return _between(self._times[self._base], rows) * area

    def useful_rows(self, shape: Shape, limit: int) -> int:
        """The fewest rows of a call that get nearly as many done a second as any number up to `limit` does."""
        sizes = [rows for rows in self._sizes(shape) if rows <= limit] or [limit]
        rates = [rows / (self.seconds(shape, rows) or 1.0) for rows in sizes]
        best = max(rates)
        return next(rows for rows, rate in zip(sizes, rates, strict=True) if rate >= _WORTHWHILE_RATE * best)

    def tried_rows(self, shape: Shape, limit: int) -> int:
        """As useful_rows, but every now and then twice as many, as far as `limit` goes: what was slow at warm-up, since
        the machine had other things to do, would stay so for ever if nobody tried again."""
        useful = self.useful_rows(shape, limit)
        more = next((rows for rows in self._sizes(shape) if 2 * useful <= rows <= limit), useful)
        now = self._calls[shape]
        if more == useful or now - self._tried_at.get((shape, more), 0) < _STALE_CALLS:
            return useful
        self._tried_at[shape, more] = now
        return more

    def free_rows(self, shape: Shape, rows: int, limit: int) -> int:
        """How many rows, `rows` at the least, a call of `rows` may have for next to nothing more."""
        allowed_s = self.seconds(shape, rows) * _FREE_TIME_FACTOR
        return max(
            [rows, *(more for more in self._sizes(shape) if more <= limit and self.seconds(shape, more) <= allowed_s)]
        )

    def solo_s(self, shape: Shape, *, pictures: int, rows: int, calls: int, limit: int) -> float:
        """What drawing takes with the model for itself: `pictures` of `rows` rows and `calls` calls each."""
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
        # Fewer rows than were ever measured: no faster than the fewest.
        return times[upper]
    lower = known[place - 1]
    share = (rows - lower) / (upper - lower)
    return times[lower] + share * (times[upper] - times[lower])
