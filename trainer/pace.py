"""How many rows a tick should have. Pure: times are handed in.

A table of the time that a forward and a backward pass take by rows, from the ticks themselves: what was never tried is
tried once there is work for it, for as long as twice the rows gain something.
"""

from collections import defaultdict

_FIRST = 8  # rows that are tried before anything was measured
_NEWEST = 0.2  # weight of the newest tick in the smoothed time
_WORTH = 0.9  # of the best rate: more rows than give this only make everybody wait


class Pace:
    """One model's tick times."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._seen: dict[int, int] = defaultdict(int)

    def measured(self, rows: int, seconds: float) -> None:
        """A tick of `rows` rows took `seconds`. The first of its size is left out: libraries prepare for a shape."""
        self._seen[rows] += 1
        if self._seen[rows] == 1:
            return
        before = self._seconds.get(rows)
        self._seconds[rows] = seconds if before is None else before + _NEWEST * (seconds - before)

    def useful_rows(self, limit: int) -> int:
        """The fewest rows that get nearly as many done a second as any number up to `limit` does."""
        rates = {rows: rows / seconds for rows, seconds in sorted(self._seconds.items()) if rows <= limit}
        if not rates:
            return min(_FIRST, limit)
        best = max(rates.values())
        useful = next(rows for rows, rate in rates.items() if rate >= _WORTH * best)
        largest = max(rates)
        if useful == largest and largest < limit:
            return min(2 * largest, limit)
        return useful

    @property
    def table(self) -> dict[int, float]:
        """Seconds of a tick by its rows, as far as measured."""
        return dict(sorted(self._seconds.items()))
