"""How many rows a tick should have."""

from collections.abc import Callable

import pytest

from trainer.worker.tick_size import TickSizer


def settled(seconds: Callable[[int], float], limit: int = 64, wanted: int = 64) -> tuple[int, list[int]]:
    """The rows that a pace comes to rest at where `wanted` rows are always wanted, and those that it tried."""
    pace, tried = TickSizer(), []
    for _ in range(40):
        rows = pace.useful_rows(limit, wanted)
        tried.append(rows)
        pace.observe(rows, seconds(rows))
    return tried[-1], sorted(set(tried))


def test_a_device_that_one_job_fills_is_given_one() -> None:
    assert settled(lambda rows: 0.1 * rows) == (8, [8, 16])


def test_a_device_that_is_never_full_is_given_all_there_may_be() -> None:
    assert settled(lambda rows: 0.1) == (64, [8, 16, 32, 64])
    assert settled(lambda rows: 0.1, limit=20) == (20, [8, 16, 20])


def test_more_rows_than_gain_something_only_make_everybody_wait() -> None:
    """Two AVX2 cores, as measured: 54, 63 and 68 rows a second."""
    seconds = {8: 0.1496, 16: 0.2555, 32: 0.4737, 64: 0.94}
    assert settled(lambda rows: seconds[rows])[0] == 16


def test_who_waits_decides_what_is_worth_it() -> None:
    """Two AVX-512 cores, as measured: 79, 99 and 116 rows a second. Eight who want four rows each are served by fours,
    the first four of them in half the time; of many more nobody has anything of being among the first."""
    seconds = {8: 0.102, 16: 0.161, 32: 0.276, 64: 0.55}
    assert settled(lambda rows: seconds[rows], wanted=32)[0] == 16
    assert settled(lambda rows: seconds[rows], wanted=1024)[0] == 32


def test_the_first_call_of_a_size_tells_nothing() -> None:
    pace = TickSizer()
    pace.observe(8, 30.0)
    assert pace.table == {}
    pace.observe(8, 0.1)
    pace.observe(8, 0.2)
    assert pace.table == pytest.approx({8: 0.12})


def test_a_limit_that_shrinks_is_kept() -> None:
    pace = TickSizer()
    for rows in (8, 8, 16, 16, 32, 32):
        pace.observe(rows, 0.1)
    assert pace.useful_rows(12, 64) == 12
    assert pace.useful_rows(4, 64) == 4
