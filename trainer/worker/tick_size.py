"""Chooses the number of rows of a tick. Pure: times are passed in.

Keeps a table of the time of a forward and backward pass by rows, measured on the ticks themselves. Twice the largest
measured number of rows is tried when there is work for it, for as long as the largest number is the best.
"""

from collections import defaultdict

_FIRST_ROWS = 8  # rows of a tick before the first measurement
_EWMA_WEIGHT = 0.2  # weight of the newest tick in the smoothed time


class TickSizer:
    """One model's tick times."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._ticks: dict[int, int] = defaultdict(int)

    def observe(self, rows: int, seconds: float) -> None:
        """Records that a tick of `rows` rows took `seconds`. The first tick of each size is ignored: libraries prepare
        for a new shape in it."""
        self._ticks[rows] += 1
        if self._ticks[rows] == 1:
            return
        before = self._seconds.get(rows)
        self._seconds[rows] = seconds if before is None else before + _EWMA_WEIGHT * (seconds - before)

    def useful_rows(self, limit: int, wanted: int) -> int:
        """The number of rows, up to `limit`, that minimises the mean time after which `wanted` rows in total are done.

        When `wanted` rows are computed `rows` at a time, one group after the other, the mean group ends after
        (wanted + rows) / 2 rows. A larger tick therefore pays only if it computes its rows faster.
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
        """Measured seconds of a tick by its rows."""
        return dict(sorted(self._seconds.items()))
