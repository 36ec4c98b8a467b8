"""Scheduler: which requests are admitted, and which pictures make the next call."""

from collections import Counter
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.scheduling.cost_model import Shape, StepCostModel
from service.scheduling.scheduler import Full, Overloaded, Scheduler, TooLate, Work

BASE = (64, 64)


class FixedCosts(StepCostModel):
    """Calls are useful up to `useful` rows, and may grow to `free` rows at no cost (None: not at all)."""

    def __init__(self, *, useful: int = 100, free: int | None = None) -> None:
        super().__init__(BASE)
        self.useful = useful
        self.free = free

    def tried_rows(self, shape: Shape, limit: int) -> int:
        return min(self.useful, limit)

    def free_rows(self, shape: Shape, rows: int, limit: int) -> int:
        return rows if self.free is None else self.free


def work(**fields: object) -> Work:
    return Work(**({"tenant": "a", "shape": BASE, "rows": 2, "calls": 10} | fields))  # type: ignore[arg-type]


def enter(scheduler: Scheduler, id: int, **fields: object) -> Work:
    """Admits one picture and enters it as `id`."""
    one = work(**fields)
    scheduler.admit(one, 0.0)
    scheduler.enter(one, [id])
    return one


_WORKS: st.SearchStrategy[list[dict[str, object]]] = st.lists(
    st.builds(
        dict,
        tenant=st.sampled_from("abc"),
        shape=st.sampled_from([(64, 64), (64, 96)]),
        rows=st.sampled_from([1, 2]),
        exact=st.booleans(),
        priority=st.integers(-9, 9),
        deadline=st.sampled_from([5.0, 50.0, inf]),
    ),
    min_size=1,
    max_size=24,
)


@given(_WORKS, st.integers(1, 8))
def test_group_has_one_shape_no_exact_picture_and_at_most_max_rows(
    fields: list[dict[str, object]], max_rows: int
) -> None:
    scheduler = Scheduler(FixedCosts(free=100), max_pictures=100, max_rows=max_rows)
    works = {id: enter(scheduler, id, **one) for id, one in enumerate(fields)}
    for call in range(5):
        ids = scheduler.next_group(float(call))
        group = [works[id] for id in ids]
        assert group
        assert len({one.shape for one in group}) == 1
        assert len(group) == 1 or not any(one.exact for one in group)
        assert len(group) == 1 or sum(one.rows for one in group) <= max_rows
        assert len(set(ids)) == len(ids)


@given(_WORKS)
def test_no_picture_starves(fields: list[dict[str, object]]) -> None:
    """Every picture runs although pictures of high priority never end: waiting raises the priority."""
    scheduler = Scheduler(FixedCosts(), max_pictures=100, max_rows=2, aging_s=1.0)
    for id, one in enumerate(fields):
        enter(scheduler, id, **one)
    ran: Counter[int] = Counter()
    for call in range(40 * len(fields)):
        ran.update(scheduler.next_group(float(call)))
    assert set(ran) == set(range(len(fields)))


def test_call_has_at_most_the_useful_rows() -> None:
    costs = FixedCosts(useful=4)
    scheduler = Scheduler(costs, max_pictures=100, max_rows=32)
    for id in range(6):
        enter(scheduler, id)
    assert len(scheduler.next_group(0.0)) == 2
    costs.useful = 1
    assert len(scheduler.next_group(0.0)) == 1
    costs.useful = 100
    assert len(scheduler.next_group(0.0)) == 6


def test_background_pictures_join_a_call_if_their_rows_are_free() -> None:
    costs = FixedCosts()
    scheduler = Scheduler(costs, max_pictures=100, max_rows=32)
    for id in range(8):
        enter(scheduler, id, priority=-9)
    assert len(scheduler.next_group(0.0)) == 8  # no other picture waits
    enter(scheduler, 8)
    assert scheduler.next_group(0.0) == [8]
    costs.free = 6
    assert len(scheduler.next_group(0.0)) == 3
    costs.free = None
    enter(scheduler, 9, tenant="b")
    assert set(scheduler.next_group(0.0)) == {8, 9}
    # A background picture that has waited long enough leads a call, and then joins others without a limit.
    scheduler.next_group(100.0)
    assert set(scheduler.next_group(105.0)) == set(range(10))


def test_tenants_get_equal_rows() -> None:
    scheduler = Scheduler(FixedCosts(), max_pictures=100, max_rows=4)
    works = {id: enter(scheduler, id, tenant="many") for id in range(20)}
    works |= {id: enter(scheduler, id, tenant="one") for id in (20, 21)}
    ran: Counter[str] = Counter()
    for _ in range(30):
        ran.update(works[id].tenant for id in scheduler.next_group(0.0))
    assert ran["many"] == ran["one"] == 30


def test_idle_tenant_accumulates_no_credit() -> None:
    scheduler = Scheduler(FixedCosts(), max_pictures=100, max_rows=2)
    works = {0: enter(scheduler, 0, tenant="steady")}
    for _ in range(50):
        scheduler.next_group(0.0)
    works[1] = enter(scheduler, 1, tenant="late")
    ran = [works[scheduler.next_group(0.0)[0]].tenant for _ in range(10)]
    assert Counter(ran) == {"steady": 5, "late": 5}


def test_priority_goes_before_deadline() -> None:
    scheduler = Scheduler(FixedCosts(), max_pictures=100, max_rows=2)
    enter(scheduler, 0)
    enter(scheduler, 1, deadline=9.0)
    enter(scheduler, 2, priority=1)
    order = []
    for _ in range(3):
        (id,) = scheduler.next_group(0.0)
        order.append(id)
        scheduler.leave(id)
    assert order == [2, 1, 0]
    assert scheduler.next_group(0.0) == []


def test_limits_in_total_and_for_each_tenant_refuse_and_free_places() -> None:
    scheduler = Scheduler(FixedCosts(), max_pictures=3, max_rows=2, max_pictures_a_tenant=2)
    scheduler.admit(work(), 0.0)
    scheduler.release(work())
    enter(scheduler, 0)
    scheduler.admit(work(), 0.0)
    with pytest.raises(Full) as caught:
        scheduler.admit(work(), 0.0)
    assert (caught.value.waiting, caught.value.limit, caught.value.tenant) == (2, 2, "a")
    scheduler.admit(work(tenant="b"), 0.0)
    with pytest.raises(Full) as caught:
        scheduler.admit(work(tenant="c"), 0.0)
    assert (caught.value.waiting, caught.value.limit, caught.value.tenant) == (3, 3, "")
    scheduler.leave(0)
    scheduler.admit(work(), 0.0)
    assert len(scheduler) == 3


def measured(**limits: int) -> Scheduler:
    costs = StepCostModel(BASE)
    for rows, seconds in ((1, 0.1), (2, 0.1), (4, 0.2)):
        costs.observe(BASE, rows, seconds)
    return Scheduler(costs, **({"max_pictures": 9, "max_rows": 4} | limits))


def test_admission_refuses_a_deadline_that_cannot_be_met() -> None:
    scheduler = measured()
    with pytest.raises(TooLate) as late:
        scheduler.admit(work(deadline=0.9), 0.0)
    assert (late.value.needed_s, late.value.left_s) == pytest.approx((1.0, 0.9))
    scheduler.admit(work(deadline=1.5), 0.0)
    scheduler.enter(work(deadline=1.5), [0])
    # The deadline can be met alone, but not after the first request.
    with pytest.raises(Overloaded) as overload:
        scheduler.admit(work(deadline=1.6), 0.0)
    assert overload.value.late_s == pytest.approx(0.4)
    scheduler.admit(work(deadline=2.5), 0.0)
    scheduler.admit(work(deadline=1.6, priority=1), 0.0)  # runs before the first request
    scheduler.admit(work(), 0.0)
    assert scheduler.work_ahead_s(0) == pytest.approx(1.0)
    for _ in range(4):
        scheduler.stepped([0])
    assert scheduler.work_ahead_s(0) == pytest.approx(0.6)


def test_picture_that_cannot_meet_its_deadline_is_hopeless() -> None:
    scheduler = measured()
    for id, one in enumerate((work(deadline=1.5), work())):
        scheduler.admit(one, 0.0)
        scheduler.enter(one, [id])
    assert scheduler.hopeless(0.7) == []
    assert scheduler.hopeless(0.9) == [0]  # ten calls take no less than 0.7 s
    scheduler.leave(0)
    assert scheduler.hopeless(1e9) == []


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from("abc")), max_size=20), st.integers(1, 9))
def test_reserved_places_never_exceed_the_limit_and_are_all_freed(asked: list[tuple[int, str]], limit: int) -> None:
    scheduler, ids = measured(max_pictures=limit, max_pictures_a_tenant=max(1, limit - 2)), 0
    inside: list[int] = []
    for number, (pictures, tenant) in enumerate(asked):
        one = work(tenant=tenant, pictures=pictures)
        try:
            scheduler.admit(one, 0.0)
        except Full:
            continue
        if number % 3 == 0:
            scheduler.release(one)
            continue
        scheduler.enter(one, range(ids, ids + pictures))
        inside += range(ids, ids + pictures)
        ids += pictures
        assert len(inside) == len(scheduler) <= limit
    for id in inside:
        scheduler.leave(id)
        scheduler.leave(id)
    assert len(scheduler) == 0
    assert scheduler.next_group(0.0) == []
    assert scheduler.work_ahead_s(0) == 0
