"""TickSizer: how many rows a tick should have."""

from collections.abc import Callable

import pytest

from trainer.worker.tick_size import TickSizer


def settled(seconds: Callable[[int], float], limit: int = 64, wanted: int = 64) -> tuple[int, list[int]]:
    """The number of rows on which a sizer settles if `wanted` rows wait all the time, and all numbers that it tried."""
    sizer, tried = TickSizer(), []
    for _ in range(40):
        rows = sizer.useful_rows(limit, wanted)
        tried.append(rows)
        sizer.observe(rows, seconds(rows))
    return tried[-1], sorted(set(tried))


def test_saturated_device_gets_the_rows_of_one_job() -> None:
    assert settled(lambda rows: 0.1 * rows) == (8, [8, 16])


def test_device_with_constant_time_gets_the_maximum_of_rows() -> None:
    assert settled(lambda rows: 0.1) == (64, [8, 16, 32, 64])
    assert settled(lambda rows: 0.1, limit=20) == (20, [8, 16, 20])


def test_ticks_stop_growing_where_throughput_stops_growing() -> None:
    """Measured on two AVX2 cores: 54, 63 and 68 rows a second."""
    seconds = {8: 0.1496, 16: 0.2555, 32: 0.4737, 64: 0.94}
    assert settled(lambda rows: seconds[rows])[0] == 16


def test_few_waiting_rows_make_smaller_ticks_than_many() -> None:
    """Measured on two AVX-512 cores: 79, 99 and 116 rows a second. With eight jobs of four rows each, ticks of four
    jobs finish the first four in half the time; with many more jobs, larger ticks are faster for all."""
    seconds = {8: 0.102, 16: 0.161, 32: 0.276, 64: 0.55}
    assert settled(lambda rows: seconds[rows], wanted=32)[0] == 16
    assert settled(lambda rows: seconds[rows], wanted=1024)[0] == 32


def test_the_first_measurement_of_a_size_is_ignored() -> None:
    sizer = TickSizer()
    sizer.observe(8, 30.0)
    assert sizer.table == {}
    sizer.observe(8, 0.1)
    sizer.observe(8, 0.2)
    assert sizer.table == pytest.approx({8: 0.12})


def test_a_smaller_limit_is_obeyed() -> None:
    sizer = TickSizer()
    for rows in (8, 8, 16, 16, 32, 32):
        sizer.observe(rows, 0.1)
    assert sizer.useful_rows(12, 64) == 12
    assert sizer.useful_rows(4, 64) == 4
