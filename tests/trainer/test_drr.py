"""Whose rows make the next tick."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from trainer.worker.drr import DeficitRoundRobin, Entry

ROWS = 8  # that each job wants for a step


def entry(tenant: str, priority: int = 0, order: int = 0) -> Entry:
    return Entry(tenant=tenant, priority=priority, order=order)


def turns_of(tenants: str, *, quantum: int = 40) -> DeficitRoundRobin:
    """A job for each letter, which is its tenant: `aab` makes a0, a1 and b2."""
    drr = DeficitRoundRobin(quantum_rows=quantum)
    for index, tenant in enumerate(tenants):
        drr.join(f"{tenant}{index}", entry(tenant, order=index))
    return drr


def test_other_tenants_share_a_tick_before_a_tenants_own_jobs_do() -> None:
    drr = turns_of("aab")
    assert drr.grant({"a0": ROWS, "a1": ROWS, "b2": ROWS}, 16) == {"a0": ROWS, "b2": ROWS}
    assert drr.grant({"a0": ROWS, "a1": ROWS, "b2": ROWS}, 20) == {"a0": ROWS, "b2": ROWS, "a1": 4}
    assert drr.grant({"a0": ROWS, "a1": ROWS, "b2": ROWS}, 99) == dict.fromkeys(("a0", "a1", "b2"), ROWS)


def test_the_first_job_is_never_cut() -> None:
    assert turns_of("ab").grant({"a0": 64, "b1": 64}, 8) == {"a0": 64}


def test_jobs_end_one_after_the_other() -> None:
    """Eight tenants with a job of ten steps each: within a quantum, the first has ended when 1/8 of all is done."""
    drr = turns_of("abcdefgh", quantum=100)
    left = {f"{tenant}{index}": 80 for index, tenant in enumerate("abcdefgh")}
    ended = []
    while left:
        for name, rows in drr.grant({name: min(ROWS, rows) for name, rows in left.items()}, ROWS).items():
            left[name] -= rows
            if not left[name]:
                del left[name]
                drr.leave(name)
                ended.append((name[0], sum(left.values())))
    assert ended == [(tenant, 80 * (7 - index)) for index, tenant in enumerate("abcdefgh")]


def test_who_has_had_a_quantum_waits_for_who_comes() -> None:
    drr = turns_of("a", quantum=40)
    for _ in range(20):
        drr.grant({"a0": ROWS}, ROWS)
    drr.join("b1", entry("b"))
    granted = [next(iter(drr.grant({"a0": ROWS, "b1": ROWS}, ROWS))) for _ in range(10)]
    assert granted == ["b1"] * 5 + ["a0"] * 5


def test_nobody_is_first_again_by_leaving() -> None:
    """A tenant whose jobs come one at a time, against one that is always there."""
    drr = turns_of("ab", quantum=2 * ROWS)
    rows: Counter[str] = Counter()
    name = "b1"
    for index in range(200):
        (got,) = drr.grant({"a0": ROWS, name: ROWS}, ROWS)
        rows[got[0]] += ROWS
        if got == name:
            drr.leave(name)
            name = f"b{index + 2}"
            drr.join(name, entry("b"))
    assert abs(rows["a"] - rows["b"]) <= 4 * ROWS


def test_priorities_order_a_tenants_own_jobs_and_below_zero_waits_for_all() -> None:
    drr = DeficitRoundRobin(quantum_rows=1000)
    for name, priority in (("usual", 0), ("urgent", 5), ("later", 0), ("background", -1)):
        drr.join(name, entry("a", priority, len(name)))
    drr.join("other", entry("b", -9))
    wanted = dict.fromkeys(("usual", "urgent", "later", "background", "other"), ROWS)
    order = []
    while wanted:
        (name,) = drr.grant(wanted, ROWS)
        order.append(name)
        drr.leave(name)
        del wanted[name]
    assert order[:3] == ["urgent", "later", "usual"]
    assert set(order[3:]) == {"background", "other"}


@given(
    jobs=st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 2)), min_size=1, max_size=12),
    wanted=st.lists(st.integers(0, 20), min_size=12, max_size=12),
    limit=st.integers(1, 40),
)
def test_what_is_granted_is_wanted_and_no_row_is_left_out(
    jobs: list[tuple[str, int]], wanted: list[int], limit: int
) -> None:
    drr = DeficitRoundRobin(quantum_rows=10)
    for index, (tenant, priority) in enumerate(jobs):
        drr.join(str(index), entry(tenant, priority, index))
    asked = {str(index): wanted[index] for index in range(len(jobs))}
    granted = drr.grant(asked, limit)
    assert all(0 < rows <= asked[name] for name, rows in granted.items())
    # Below 0 nothing is given while another can use it.
    classes = {jobs[int(name)][1] >= 0 for name in granted}
    assert len(classes) <= 1
    ordinary = sum(rows for name, rows in asked.items() if jobs[int(name)][1] >= 0)
    eligible = ordinary if any(priority >= 0 for _, priority in jobs) else sum(asked.values())
    first = next(iter(granted.values()), 0)
    assert sum(granted.values()) == max(first, min(limit, eligible))


@given(
    script=st.lists(st.tuples(st.sampled_from("jlg"), st.integers(0, 5)), max_size=120),
    quantum=st.integers(1, 50),
    limit=st.integers(1, 30),
)
def test_tenants_that_are_always_there_get_alike_whatever_others_do(
    script: list[tuple[str, int]], quantum: int, limit: int
) -> None:
    """Two tenants with a job each from the start, and others that come and go."""
    drr = turns_of("xy", quantum=quantum)
    here: set[str] = set()
    rows = {"x": 0, "y": 0}
    for what, index in script:
        name = f"{'pqr'[index % 3]}{index}"
        if what == "j" and name not in here:
            drr.join(name, entry(name[0], order=index))
            here.add(name)
        elif what == "l" and name in here:
            drr.leave(name)
            here.remove(name)
        else:
            granted = drr.grant(dict.fromkeys({"x0", "y1", *here}, ROWS), limit)
            for tenant, job in (("x", "x0"), ("y", "y1")):
                rows[tenant] += granted.get(job, 0)
    assert abs(rows["x"] - rows["y"]) <= 2 * (quantum + ROWS)
