"""StepCostModel: step times, and the numbers of rows that follow from them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.scheduling.cost_model import StepCostModel

BASE = (64, 64)


def costs(**times: float) -> StepCostModel:
    made = StepCostModel(BASE)
    for rows, seconds in times.items():
        made.observe(BASE, int(rows[1:]), seconds)
    return made


def test_times_are_interpolated_and_extrapolated() -> None:
    times = costs(r1=1.0, r2=1.5, r4=2.5)
    assert [times.seconds(BASE, rows) for rows in (1, 2, 3, 4, 8)] == [1.0, 1.5, 2.0, 2.5, 5.0]
    assert times.seconds((64, 128), 2) == 3.0
    times.observe((64, 128), 2, 2.0)
    assert times.seconds((64, 128), 2) == 2.0
    assert StepCostModel(BASE).seconds(BASE, 4) == 0.0


def test_new_measurement_has_a_weight_of_a_fifth() -> None:
    times = costs(r1=1.0)
    times.observe(BASE, 1, 2.0)
    assert times.seconds(BASE, 1) == pytest.approx(1.2)


def test_useful_rows_end_where_throughput_stops_growing() -> None:
    assert costs(r1=1.0, r2=2.0, r4=4.0, r8=8.0).useful_rows(BASE, 32) == 1
    assert costs(r1=1.0, r2=1.0, r4=1.0, r8=2.0).useful_rows(BASE, 32) == 4
    assert costs(r1=1.0, r2=1.2, r4=1.6, r8=2.4).useful_rows(BASE, 32) == 8
    assert costs(r1=1.0, r2=1.2, r4=1.6, r8=2.4).useful_rows(BASE, 4) == 4
    assert StepCostModel(BASE).useful_rows(BASE, 32) == 32


def test_slow_measurement_is_corrected_by_trying_the_size_again() -> None:
    """The machine was busy while warm-up measured eight rows."""
    times = costs(r1=1.0, r2=1.2, r4=1.6, r8=9.0)
    tried = []
    for _ in range(100):
        rows = times.tried_rows(BASE, 8)
        tried.append(rows)
        times.observe(BASE, rows, {4: 1.6, 8: 2.4}[rows])
    assert tried[0] == 4
    assert 8 in tried[:40]
    assert set(tried[40:]) == {8}


def test_size_without_gain_is_tried_seldom() -> None:
    times = costs(r1=1.0, r2=1.2, r4=1.6, r8=3.2)
    tried = []
    for _ in range(200):
        rows = times.tried_rows(BASE, 8)
        tried.append(rows)
        # A call with fewer rows says nothing about eight rows.
        times.observe(BASE, 4, 1.6)
    assert 3 <= tried.count(8) <= 7
    assert times.tried_rows(BASE, 4) == 4


def test_free_rows_fill_a_call_up_to_the_next_slower_size() -> None:
    times = costs(r1=1.0, r2=1.0, r4=1.04, r8=2.0)
    assert [times.free_rows(BASE, rows, 32) for rows in (1, 4, 5, 8)] == [4, 4, 5, 8]
    assert times.free_rows(BASE, 1, 2) == 2
    assert StepCostModel(BASE).free_rows(BASE, 3, 32) == 3


def test_solo_time_counts_calls_of_a_request_alone() -> None:
    times = costs(r1=1.0, r2=1.0, r4=1.0, r8=2.0)
    how = {"rows": 2, "calls": 10, "limit": 32}
    assert times.solo_s(BASE, pictures=1, **how) == 10
    assert times.solo_s(BASE, pictures=2, **how) == 10
    assert times.solo_s(BASE, pictures=3, **how) == 20
    assert times.solo_s(BASE, pictures=5, **how) == 30


_TIMES = st.dictionaries(st.sampled_from([1, 2, 4, 8, 16]), st.floats(0.01, 10), min_size=1)


@given(_TIMES, st.integers(1, 64), st.integers(1, 32))
def test_estimates_stay_within_the_measurements(times: dict[int, float], rows: int, limit: int) -> None:
    made = StepCostModel(BASE)
    for number, seconds in times.items():
        made.observe(BASE, number, seconds)
    assert min(times.values()) <= made.seconds(BASE, rows) <= max(times.values()) * max(1.0, rows / max(times))
    useful = made.useful_rows(BASE, limit)
    assert 1 <= useful <= max(limit, 1)
    assert useful in times or useful == limit
