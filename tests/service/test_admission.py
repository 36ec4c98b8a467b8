"""Who is let in and who runs next, as pure rules."""

from collections import Counter
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.admission import Full, Roster, Ticket


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
    roster = Roster(max_pictures=2, max_rows=2)
    roster.admit(ticket(0))
    roster.admit(ticket(1))
    with pytest.raises(Full) as caught:
        roster.admit(ticket(2))
    assert (caught.value.waiting, caught.value.limit) == (2, 2)
    roster.leave(0)
    roster.admit(ticket(2))
    assert len(roster) == 2


def test_expired() -> None:
    roster = Roster(max_pictures=9, max_rows=2)
    roster.admit(ticket(0, deadline=5.0))
    roster.admit(ticket(1))
    assert [one.id for one in roster.expired(5.0)] == [0]
    assert roster.expired(4.9) == []
