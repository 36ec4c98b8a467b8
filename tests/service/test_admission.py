"""Who is let in and who runs next, as pure rules."""

from collections import Counter
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.scheduling.admission import Full, Roster, Ticket
from service.scheduling.cost_model import StepCostModel
from service.scheduling.scheduler import Ask, Overloaded, Policy, TooLate


def ticket(number: int, **fields: object) -> Ticket:
    return Ticket(**({"id": number, "tenant": "a", "shape": (64, 64), "rows": 2} | fields))  # type: ignore[arg-type]


_TICKETS: st.SearchStrategy[list[dict[str, object]]] = st.lists(
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


@given(_TICKETS, st.integers(1, 8))
def test_a_group_can_share_a_call(fields: list[dict[str, object]], max_rows: int) -> None:
    roster = Roster(max_pictures=100, max_rows=max_rows)
    for number, one in enumerate(fields):
        roster.admit(ticket(number, **one))
    for call in range(5):
        group = roster.next_group(float(call))
        assert group
        assert len({one.shape for one in group}) == 1
        assert len(group) == 1 or not any(one.exact for one in group)
        assert len(group) == 1 or sum(one.rows for one in group) <= max_rows
        assert len({one.id for one in group}) == len(group)


@given(_TICKETS)
def test_nobody_starves(fields: list[dict[str, object]]) -> None:
    """Everybody runs, although high priorities never end: waiting raises a picture's own."""
    roster = Roster(max_pictures=100, max_rows=2, aging_s=1.0)
    for number, one in enumerate(fields):
        roster.admit(ticket(number, **one))
    ran: Counter[int] = Counter()
    for call in range(40 * len(fields)):
        ran.update(one.id for one in roster.next_group(float(call), None, lambda shape, rows: rows))
    assert set(ran) == set(range(len(fields)))


def test_no_more_rows_than_are_useful() -> None:
    roster = Roster(max_pictures=100, max_rows=32)
    for number in range(6):
        roster.admit(ticket(number))
    assert len(roster.next_group(0.0, lambda shape: 4)) == 2
    assert len(roster.next_group(0.0, lambda shape: 1)) == 1
    assert len(roster.next_group(0.0)) == 6


def test_the_background_joins_where_it_costs_nothing() -> None:
    roster = Roster(max_pictures=100, max_rows=32)
    for number in range(8):
        roster.admit(ticket(number, priority=-9))
    assert len(roster.next_group(0.0, None, lambda shape, rows: rows)) == 8  # nobody else is there
    roster.admit(ticket(8))
    assert [one.id for one in roster.next_group(0.0, None, lambda shape, rows: rows)] == [8]
    assert len(roster.next_group(0.0, None, lambda shape, rows: 6)) == 3
    roster.admit(ticket(9, tenant="b"))
    assert {8, 9} == {one.id for one in roster.next_group(0.0, None, lambda shape, rows: rows)}
    # Whoever has waited long enough leads a call, and then joins others freely.
    roster.next_group(100.0, None, lambda shape, rows: rows)
    assert {one.id for one in roster.next_group(105.0, None, lambda shape, rows: rows)} == set(range(10))


def test_tenants_share_by_rows() -> None:
    roster = Roster(max_pictures=100, max_rows=4)
    for number in range(20):
        roster.admit(ticket(number, tenant="many"))
    roster.admit(ticket(20, tenant="one"))
    roster.admit(ticket(21, tenant="one"))
    ran: Counter[str] = Counter()
    for _ in range(30):
        ran.update(one.tenant for one in roster.next_group(0.0))
    assert ran["many"] == ran["one"] == 30


def test_a_tenant_that_comes_back_has_saved_nothing_up() -> None:
    roster = Roster(max_pictures=100, max_rows=2)
    roster.admit(ticket(0, tenant="steady"))
    for _ in range(50):
        roster.next_group(0.0)
    roster.admit(ticket(1, tenant="late"))
    ran = [roster.next_group(0.0)[0].tenant for _ in range(10)]
    assert Counter(ran) == {"steady": 5, "late": 5}


def test_priority_then_deadline() -> None:
    roster = Roster(max_pictures=100, max_rows=2)
    roster.admit(ticket(0))
    roster.admit(ticket(1, deadline=9.0))
    roster.admit(ticket(2, priority=1))
    order = []
    for _ in range(3):
        (one,) = roster.next_group(0.0)
        order.append(one.id)
        roster.leave(one.id)
    assert order == [2, 1, 0]
    assert roster.next_group(0.0) == []


def test_full_and_room_again() -> None:
    roster = Roster(max_pictures=3, max_rows=2, max_pictures_a_tenant=2)
    roster.reserve("a", 1)
    roster.release("a", 1)
    roster.admit(ticket(0))
    roster.reserve("a", 1)
    with pytest.raises(Full) as caught:
        roster.reserve("a", 1)
    assert (caught.value.waiting, caught.value.limit, caught.value.tenant) == (2, 2, "a")
    roster.reserve("b", 1)
    with pytest.raises(Full) as caught:
        roster.reserve("c", 1)
    assert (caught.value.waiting, caught.value.limit, caught.value.tenant) == (3, 3, "")
    roster.leave(0)
    roster.reserve("a", 1)
    assert len(roster) == 3


def policy(**limits: int) -> Policy:
    pace = StepCostModel((64, 64))
    for rows, seconds in ((1, 0.1), (2, 0.1), (4, 0.2)):
        pace.measured((64, 64), rows, seconds)
    return Policy(Roster(**({"max_pictures": 9, "max_rows": 4} | limits)), pace)


def ask(**fields: object) -> Ask:
    return Ask(**({"tenant": "a", "shape": (64, 64), "rows": 2, "calls": 10} | fields))  # type: ignore[arg-type]


def test_deadlines_decide_at_the_door() -> None:
    rules = policy()
    with pytest.raises(TooLate) as late:
        rules.let_in(ask(deadline=0.9), 0.0)
    assert (late.value.needed_s, late.value.left_s) == pytest.approx((1.0, 0.9))
    rules.let_in(ask(deadline=1.5), 0.0)
    rules.enter(ask(deadline=1.5), [0])
    # Each would do alone; this one comes after the first.
    with pytest.raises(Overloaded) as overload:
        rules.let_in(ask(deadline=1.6), 0.0)
    assert overload.value.late_s == pytest.approx(0.4)
    rules.let_in(ask(deadline=2.5), 0.0)
    rules.let_in(ask(deadline=1.6, priority=1), 0.0)  # goes before it
    rules.let_in(ask(), 0.0)
    assert rules.work_ahead_s(0) == pytest.approx(1.0)
    for _ in range(4):
        rules.stepped([0])
    assert rules.work_ahead_s(0) == pytest.approx(0.6)


def test_what_cannot_be_in_time_leaves() -> None:
    rules = policy()
    for id, one in enumerate((ask(deadline=1.5), ask())):
        rules.let_in(one, 0.0)
        rules.enter(one, [id])
    assert rules.hopeless(0.7) == []
    assert [one.id for one in rules.hopeless(0.9)] == [0]  # ten calls take no less than 0.7 s
    rules.leave(0)
    assert rules.hopeless(1e9) == []


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from("abc")), max_size=20), st.integers(1, 9))
def test_places_are_kept_and_given_back(asked: list[tuple[int, str]], limit: int) -> None:
    """However requests come and go, no more pictures are here than are allowed, and in the end none."""
    rules, ids = policy(max_pictures=limit, max_pictures_a_tenant=max(1, limit - 2)), 0
    inside: list[int] = []
    for number, (pictures, tenant) in enumerate(asked):
        one = ask(tenant=tenant, pictures=pictures)
        try:
            rules.let_in(one, 0.0)
        except Full:
            continue
        if number % 3 == 0:
            rules.give_back(one)
            continue
        rules.enter(one, range(ids, ids + pictures))
        inside += range(ids, ids + pictures)
        ids += pictures
        assert len(inside) == len(rules.roster) <= limit
    for id in inside:
        rules.leave(id)
        rules.leave(id)
    assert len(rules.roster) == 0
    assert rules.next_group(0.0) == []
    assert rules.work_ahead_s(0) == 0
