"""StartTimeFairQueue: which waiting job is handed out next."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from trainer.queue.sfq import StartTimeFairQueue, trade


def job(name: str, tenant: str, *, steps: int = 50, rows: int = 8, priority: int = 0, created_us: int = 0) -> Any:
    recipe = {"steps": steps, "rows": rows}
    return {
        "name": name,
        "tenant": tenant,
        "priority": priority,
        "created_us": created_us,
        "worker_deaths": 0,
        "spec": {"recipe": recipe},
    }


def order(queue: StartTimeFairQueue, jobs: list[Any]) -> list[str]:
    """The names of the jobs in the order in which the queue hands them out."""
    found = []
    left = {one["name"]: one for one in jobs}
    while left:
        queue.wait(list(left.values()))
        found.append(queue.first())
        del left[found[-1]]
    return found


def test_a_tenant_with_few_jobs_does_not_wait_for_one_with_many() -> None:
    many = [job(f"many{index:02}", "many", created_us=index) for index in range(20)]
    few = [job(f"few{index}", "few", created_us=100 + index) for index in range(2)]
    found = order(StartTimeFairQueue(), many + few)
    assert found.index("few1") <= 4
    assert [name for name in found if name.startswith("many")] == [one["name"] for one in many]


def test_long_jobs_cost_more_than_short_ones() -> None:
    long = [job(f"long{index}", "long", steps=1_000) for index in range(3)]
    short = [job(f"short{index:02}", "short", steps=50) for index in range(30)]
    found = order(StartTimeFairQueue(), long + short)
    # A long job has 8,000 rows, a short job 400.
    between = found[found.index("long0") + 1 : found.index("long1")]
    assert len(between) in {19, 20, 21}


def test_new_tenant_is_served_before_tenants_that_had_a_turn() -> None:
    queue = StartTimeFairQueue()
    waiting = [job(f"{tenant}{index}", tenant) for tenant in ("ann", "bea") for index in range(9)]
    queue.wait(waiting)
    taken = {queue.first() for _ in range(6)}
    queue.wait([one for one in waiting if one["name"] not in taken] + [job("new", "cid")])
    assert queue.first() == "new"


def test_priority_orders_a_tenants_own_jobs_and_negative_priority_comes_last() -> None:
    jobs = [
        job("old", "ann", created_us=1),
        job("high", "ann", priority=5, created_us=2),
        job("low", "ann", priority=-1, created_us=0),
        job("other", "bea", created_us=3),
    ]
    found = order(StartTimeFairQueue(), jobs)
    assert found.index("high") < found.index("old")
    assert found[-1] == "low"


jobs = st.lists(
    st.builds(
        job,
        st.uuids().map(str),
        st.sampled_from(["ann", "bea", "cid"]),
        steps=st.integers(1, 5_000),
        rows=st.integers(1, 64),
        priority=st.integers(-9, 9),
        created_us=st.integers(0, 100),
    ),
    max_size=20,
    unique_by=lambda one: one["name"],
)


@given(jobs)
def test_every_job_is_handed_out_once(waiting: list[Any]) -> None:
    found = order(StartTimeFairQueue(), waiting)
    assert sorted(found) == sorted(one["name"] for one in waiting)


def test_newest_job_of_the_tenant_with_most_places_makes_room_for_a_tenant_without_one() -> None:
    def running(name: str, tenant: str, started_us: int) -> Any:
        return job(name, tenant) | {"started_us": started_us}

    many = [running("a1", "ann", 1), running("a2", "ann", 3), running("a3", "ann", 2), running("b1", "bea", 4)]
    waiting = [job("a4", "ann", created_us=0), job("c2", "cid", created_us=9), job("c1", "cid", created_us=8)]
    traded = trade(waiting, many)
    assert traded is not None
    assert [one["name"] for one in traded] == ["c1", "a2"]
    # A tenant keeps its only place. A job of negative priority, or one whose worker has died, gets no place.
    assert trade(waiting, [many[0], many[3]]) is None
    assert trade([job("low", "cid", priority=-1), job("bad", "dan") | {"worker_deaths": 1}], many) is None
    assert trade(waiting[:1], many) is None
    assert trade(waiting, []) is None
    # A running job of negative priority makes room for any job, also of its own tenant.
    low = [job(f"low{at}", "ann", priority=-9) | {"started_us": at} for at in (5, 7, 6)]
    traded = trade(waiting[:1], [*many, *low])
    assert traded is not None
    assert [one["name"] for one in traded] == ["a4", "low7"]
    assert trade([job("low", "cid", priority=-9)], low) is None


def test_evaluations_are_charged_less_than_training() -> None:
    evaluations: list[Any] = [
        {**job(f"e{index:02}", "ann", priority=-9), "spec": {"evaluates": "v", "recipe": {"name": "object"}}}
        for index in range(9)
    ]
    queue = StartTimeFairQueue()
    long = job("long", "bea", steps=1_000, priority=-9)
    queue.wait([*evaluations, long, job("later", "bea", priority=-9, created_us=1)])
    found = [queue.first() for _ in range(len(queue))]
    # 8,000 rows of training cost more than all evaluations.
    assert found[-1] == "later"
    queue.wait([*evaluations, job("usual", "bea")])
    found = []
    while queue.ordinary:
        found.append(queue.first())
    assert (found, len(queue)) == (["usual"], len(evaluations))
