"""How many rows a tick should have. Pure: times are handed in.

A table of the time that a forward and a backward pass take by rows, from the ticks themselves: what was never tried is
tried once there is work for it, for as long as twice the rows gain something.
"""

from collections import defaultdict

_FIRST_ROWS = 8  # rows that are tried before anything was measured
_EWMA_WEIGHT = 0.2  # weight of the newest tick in the smoothed time


class TickSizer:
    """One model's tick times."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._seen: dict[int, int] = defaultdict(int)

    def observe(self, rows: int, seconds: float) -> None:
        """A tick of `rows` rows took `seconds`. The first of its size is left out: libraries prepare for a shape."""
        self._seen[rows] += 1
        if self._seen[rows] == 1:
            return
        before = self._seconds.get(rows)
        self._seconds[rows] = seconds if before is None else before + _EWMA_WEIGHT * (seconds - before)

    def useful_rows(self, limit: int, wanted: int) -> int:
        """The rows, up to `limit`, with which those who want `wanted` rows in all have them soonest on the average.

        Where so many are served `rows` at a time, one group after the other, the mean group ends after
        (wanted + rows) / 2 rows: more rows at once are of use to all only as far as they are done faster.
        """
        rates = {rows: rows / seconds for rows, seconds in sorted(self._seconds.items()) if rows <= limit}
        if not rates:
            return min(_FIRST_ROWS, limit)
        useful = min(rates, key=lambda rows: (wanted + rows) / rates[rows])
        largest = max(rates)
        if useful == largest and largest < limit:
            return min(2 * largest, limit)
        return useful

    @property
    def table(self) -> dict[int, float]:
        """Seconds of a tick by its rows, as far as measured."""
        return dict(sorted(self._seconds.items()))
