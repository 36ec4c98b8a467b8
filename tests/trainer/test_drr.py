"""DeficitRoundRobin: which rows make the next tick."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from trainer.worker.drr import DeficitRoundRobin, Entry

ROWS = 8  # of each job's step


def entry(tenant: str, priority: int = 0, order: int = 0) -> Entry:
    return Entry(tenant=tenant, priority=priority, order=order)


def turns_of(tenants: str, *, quantum: int = 40) -> DeficitRoundRobin:
    """A job for each letter, of the tenant with that letter: `aab` makes a0, a1 and b2."""
    drr = DeficitRoundRobin(quantum_rows=quantum)
    for index, tenant in enumerate(tenants):
        drr.join(f"{tenant}{index}", entry(tenant, order=index))
    return drr


def test_a_tick_has_one_job_of_each_tenant_before_a_tenants_second_job() -> None:
    drr = turns_of("aab")
    assert drr.grant({"a0": ROWS, "a1": ROWS, "b2": ROWS}, 16) == {"a0": ROWS, "b2": ROWS}
    assert drr.grant({"a0": ROWS, "a1": ROWS, "b2": ROWS}, 20) == {"a0": ROWS, "b2": ROWS, "a1": 4}
    assert drr.grant({"a0": ROWS, "a1": ROWS, "b2": ROWS}, 99) == dict.fromkeys(("a0", "a1", "b2"), ROWS)


def test_the_first_job_of_a_tick_gets_all_its_rows() -> None:
    assert turns_of("ab").grant({"a0": 64, "b1": 64}, 8) == {"a0": 64}


def test_within_a_quantum_jobs_are_finished_one_after_the_other() -> None:
    """Eight tenants with a job of ten steps each: the first job ends when 1/8 of all rows are done."""
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


def test_tenant_that_used_its_quantum_waits_for_a_new_tenant() -> None:
    drr = turns_of("a", quantum=40)
    for _ in range(20):
        drr.grant({"a0": ROWS}, ROWS)
    drr.join("b1", entry("b"))
    granted = [next(iter(drr.grant({"a0": ROWS, "b1": ROWS}, ROWS))) for _ in range(10)]
    assert granted == ["b1"] * 5 + ["a0"] * 5


def test_tenant_gains_no_rows_by_leaving_and_joining_again() -> None:
    """Tenant b runs its jobs one at a time; tenant a has one job all the time."""
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


def test_priority_orders_a_tenants_own_jobs_and_negative_priority_comes_last() -> None:
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
def test_grants_fill_the_tick_and_never_exceed_what_a_job_asks_for(
    jobs: list[tuple[str, int]], wanted: list[int], limit: int
) -> None:
    drr = DeficitRoundRobin(quantum_rows=10)
    for index, (tenant, priority) in enumerate(jobs):
        drr.join(str(index), entry(tenant, priority, index))
    asked = {str(index): wanted[index] for index in range(len(jobs))}
    granted = drr.grant(asked, limit)
    assert all(0 < rows <= asked[name] for name, rows in granted.items())
    # Jobs of negative priority get rows only if no other job can use them.
    classes = {jobs[int(name)][1] >= 0 for name in granted}
    assert len(classes) <= 1
    ordinary = sum(rows for name, rows in asked.items() if jobs[int(name)][1] >= 0)
    eligible = ordinary if any(priority >= 0 for _, priority in jobs) else sum(asked.values())
    first = next(iter(granted.values()), 0)
    assert sum(granted.values()) == max(first, min(limit, eligible))


@given(
    script=st.lists(st.tuples(st.sampled_from("jlg"), st.integers(0, 5)), max_size=120),
    # Deficit round robin is fair only if a quantum is at least as large as a grant (Shreedhar and Varghese 1995).
    quantum=st.integers(ROWS, 50),
    limit=st.integers(1, 30),
)
def test_two_permanent_tenants_get_equal_rows_while_others_join_and_leave(
    script: list[tuple[str, int]], quantum: int, limit: int
) -> None:
    """Two tenants with a job each from start to end, and others that join and leave."""
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
