"""The life cycle of a job: the table of moves, and the state machine in a ledger."""

import sqlite3
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from storage.errors import EtagMismatch
from storage.ledger.entry import RecordedEvent, Revision, canonical
from storage.ledger.ledger import Ledger
from storage.ledger.state_machine import Answer, CommittedEvent
from storage.objects.disk import DiskStore
from trainer.jobs import retention, tables
from trainer.jobs.commands import AddPicture, Command, CreateJob, DeletePicture, KeepCheckpoint, MoveJob, TenantLimits
from trainer.jobs.conversions import job_of
from trainer.jobs.follow_up import LAST_PRIORITY
from trainer.jobs.life_cycle import ENDED, MOVES, UNFINISHED, Life, Move, State, WrongState
from trainer.jobs.state_machine import SHARD, SHARDS, TrainerStateMachine

DAY_US = 86_400_000_000
PICTURE = f"tenants/default/pictures/{'a' * 64}"
JOB = "tenants/default/jobs/j1"


@given(st.lists(st.sampled_from(Move), max_size=60))
def test_any_sequence_of_moves_follows_the_table_and_counts_attempts(moves: list[Move]) -> None:
    life, takes, handed_back = Life(), 0, 0
    for move in moves:
        try:
            after = life.after(move)
        except WrongState:
            assert life.state not in MOVES[move][0]
            continue
        takes += move is Move.TAKE
        handed_back += move is Move.HAND_BACK
        if life.state in ENDED:
            assert life.state in {State.FAILED, State.CANCELLED} and move is Move.RETRY
        if life.state is State.PUBLISHING:
            assert after.state in {State.SUCCEEDED, State.FAILED}
        if after.state is State.SUCCEEDED:
            assert life.state is State.PUBLISHING
        life = after
        assert (life.attempt, life.handed_back) == (takes, handed_back)
        assert 0 <= life.worker_deaths <= life.attempt


class Machine:
    """A trainer's state machine on a database in memory, without a log: applies what it decides."""

    def __init__(self, limits: TenantLimits) -> None:
        self._state_machine = TrainerStateMachine(limits)
        self._count = 0
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        self.db.row_factory = sqlite3.Row
        self._state_machine.create(self.db)

    def run(self, command: Command) -> None:
        """Raises the error with which the state machine refuses the command."""
        self._count += 1
        events = self._state_machine.decide(self.db, command, self._count)
        assert not isinstance(events, Answer)
        for index, body in enumerate(events):
            event = RecordedEvent(
                kind=body.kind,
                tenant="default",
                request_id=f"{self._count}",
                request_digest="",
                actor="test",
                on_behalf_of="",
                body=canonical(body.body),
            )
            revision = Revision(store_id="0" * 20, shard=SHARD, entry=self._count, index=index)
            self._state_machine.apply(self.db, CommittedEvent.of(event, revision, self._count))

    def jobs(self) -> list[Any]:
        return tables.jobs(self.db, "default", None, 1_000)


# The move towards success; None below stands for it.
ONWARDS = {"QUEUED": Move.TAKE, "RUNNING": Move.FIX, "PUBLISHING": Move.FINISH}
moves = st.one_of(st.none(), st.none(), st.sampled_from(Move))


@given(st.lists(st.tuples(st.integers(0, 5), moves), min_size=20, max_size=60), st.integers(0, 2))
def test_every_published_version_gets_an_evaluation_up_to_the_limit(
    happens: list[tuple[int, Move | None]], room: int
) -> None:
    """And no picture expires that an unfinished job needs."""
    machine = Machine(TenantLimits(follow_ups=room, unfinished_per_tenant=6))
    machine.run(picture())
    for name in "abc":
        machine.run(job(f"tenants/default/jobs/{name}"))
    for index, wanted in happens:
        rows = {row["name"]: row for row in machine.jobs()}
        name = sorted(rows)[index % len(rows)]
        move = wanted or ONWARDS.get(rows[name]["state"], Move.RETRY)
        waiting = [one for one in rows.values() if one["purpose"] == "FOLLOW_UP" and one["state"] in UNFINISHED]
        try:
            machine.run(MoveJob(name=name, move=move, detail={"version": f"{name}'s"} if move is Move.FINISH else {}))
        except (FailedPrecondition, ResourceExhausted, InvalidArgument):
            assert [row["name"] for row in machine.jobs()] == [*rows]
            continue
        made = {row["name"]: row for row in machine.jobs() if row["name"] not in rows}
        follows = move is Move.FINISH and rows[name]["purpose"] == "TRAINING" and len(waiting) < room
        assert list(made) == ([f"{name}-evaluation"] if follows else [])
        for row in made.values():
            assert (row["state"], row["priority"], row["purpose"]) == ("QUEUED", LAST_PRIORITY, "FOLLOW_UP")
            assert row["spec"]["evaluates"] == f"{name}'s"
            assert row["spec"]["examples"] == rows[name]["spec"]["examples"]
        if any(row["state"] in UNFINISHED for row in machine.jobs()):
            assert retention.expired_pictures(machine.db, 2**62, 10) == []
            assert retention.picture(machine.db, PICTURE)["expires_us"] >= DAY_US
            with pytest.raises(FailedPrecondition):
                retention.refuse_needed(machine.db, PICTURE)


async def test_evaluations_take_no_place_of_training_jobs(tmp_path: Path) -> None:
    limits = TenantLimits(follow_ups=1, unfinished_per_tenant=1)
    ledger = Ledger.open(
        DiskStore(tmp_path / "store"), TrainerStateMachine(limits), shards=SHARDS, view_folder=tmp_path / "v"
    )
    jobs = Jobs(ledger)
    await jobs.commit(picture(lifetime_us=7 * DAY_US))
    other = "tenants/default/jobs/j2"
    rows = []
    for name in (JOB, other):
        await jobs.commit(job(name))
        await ends(jobs, name, Move.TAKE, Move.FIX)
        rows.append(await jobs.commit(MoveJob(name=name, move=Move.FINISH, detail={"version": "v"})))
    # The first evaluation has taken the only place.
    assert [row["detail"].get("evaluation_job") for row in rows] == [f"{JOB}-evaluation", None]
    assert await expiry(jobs) > 6

    own = job("tenants/default/jobs/j3")
    await jobs.commit(replace(own, spec=dict(own.spec) | {"evaluates": "v"}))
    with pytest.raises(ResourceExhausted) as refused:
        await jobs.commit(replace(own, name="tenants/default/jobs/j4", spec=dict(own.spec) | {"evaluates": "v"}))
    assert refused.value.reason == "TENANT_JOBS"
    await jobs.commit(job("tenants/default/jobs/j5"))
    counted = [found[State.QUEUED] for found in (await ledger.read(SHARD, tables.counts))[0]]
    assert counted == [1, 2]
    # Running evaluations take no tenant's place either.
    for name in ("j3", f"{JOB.rsplit('/', 1)[1]}-evaluation"):
        await jobs.commit(MoveJob(name=f"tenants/default/jobs/{name}", move=Move.TAKE))
    assert await taken(jobs, 1) == "5"
    await ends(jobs, f"{JOB}-evaluation", Move.FIX, Move.FINISH)
    await ends(jobs, "tenants/default/jobs/j3", Move.FIX, Move.FINISH)
    await ends(jobs, "tenants/default/jobs/j5", Move.FIX)
    assert await expiry(jobs) > 6
    await jobs.commit(MoveJob(name="tenants/default/jobs/j5", move=Move.FINISH, detail={"version": "v5"}))
    await ends(jobs, "tenants/default/jobs/j5-evaluation", Move.TAKE, Move.FIX, Move.FINISH)
    assert await expiry(jobs) <= 0
    before = await jobs.job()
    await ledger.close()
    rebuilt = Jobs(
        Ledger.open(DiskStore(tmp_path / "store"), TrainerStateMachine(), shards=SHARDS, view_folder=tmp_path / "other")
    )
    assert await rebuilt.job() == before
    await rebuilt.ledger.close()


def test_retry_resets_the_count_of_worker_deaths() -> None:
    life = Life()
    for _ in range(2):
        life = life.after(Move.TAKE).after(Move.WORKER_DIED)
    assert life.worker_deaths == 2
    life = life.after(Move.TAKE).after(Move.FAIL).after(Move.RETRY)
    assert (life.worker_deaths, life.attempt) == (0, 3)


class Jobs:
    """A trainer's ledger in a folder."""

    def __init__(self, ledger: Ledger[Command]) -> None:
        self.ledger = ledger
        self._count = 0

    async def commit(self, command: Command) -> Any:
        self._count += 1
        result = await self.ledger.commit(
            SHARD,
            command,
            request_id=f"{id(self)}-{self._count}",
            tenant="default",
            digest=str(self._count),
            actor="test",
            on_behalf_of=None,
            timeout_s=20,
        )
        return result.value

    async def move(self, move: Move, **more: Any) -> Any:
        return await self.commit(MoveJob(name=JOB, move=move, **more))

    async def job(self) -> Any:
        row, _ = await self.ledger.read(SHARD, lambda db: tables.job(db, JOB))
        return row


def picture(blob: str = "t/default/blobs/a/1", lifetime_us: int = DAY_US) -> AddPicture:
    return AddPicture(
        name=PICTURE,
        blob=blob,
        media_type="image/png",
        size_bytes=3,
        width=64,
        height=64,
        lifetime_us=lifetime_us,
    )


def job(name: str = JOB, priority: int = 0, tenant: str = "default") -> CreateJob:
    return CreateJob(
        name=name,
        tenant=tenant,
        priority=priority,
        spec={"concept": "tenants/default/concepts/rex", "examples": [{"picture": PICTURE}]},
        creator="ann",
        principal="{}",
    )


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[Jobs]:
    ledger = Ledger.open(
        DiskStore(tmp_path / "store"), TrainerStateMachine(), shards=SHARDS, view_folder=tmp_path / "view"
    )
    yield Jobs(ledger)
    await ledger.close()


async def test_an_attempt_that_lost_its_job_cannot_fix_its_result(jobs: Jobs) -> None:
    await jobs.commit(picture())
    await jobs.commit(job())
    assert (await jobs.move(Move.TAKE))["attempt"] == 1
    await jobs.move(Move.WORKER_DIED, attempt=1)
    assert (await jobs.move(Move.TAKE))["attempt"] == 2
    with pytest.raises(FailedPrecondition) as refused:
        await jobs.move(Move.FIX, attempt=1, detail={"embedding": "of the first"})
    assert refused.value.reason == "ATTEMPT_OVER"
    await jobs.move(Move.FIX, attempt=2, detail={"embedding": "of the second"})
    row = await jobs.move(Move.FINISH, attempt=2, detail={"version": "v"})
    assert row["detail"] == {"embedding": "of the second", "version": "v"}
    assert row["ended_us"] >= row["started_us"] >= row["created_us"]


async def test_attempt_numbers_are_unique_and_moves_of_an_earlier_attempt_are_refused(jobs: Jobs) -> None:
    await jobs.commit(picture())
    await jobs.commit(job())
    await jobs.move(Move.TAKE)
    await jobs.move(Move.WORKER_DIED, attempt=1)
    with pytest.raises(FailedPrecondition) as refused:  # it is queued for another worker
        await jobs.move(Move.FAIL, attempt=1)
    assert refused.value.reason == "JOB_STATE"
    await jobs.move(Move.TAKE)
    await jobs.move(Move.HAND_BACK, attempt=2)
    row = await jobs.move(Move.TAKE)
    assert (row["attempt"], job_of(row, "").attempt) == (3, 2)
    for move in (Move.HAND_BACK, Move.FIX, Move.FAIL, Move.WORKER_DIED):
        with pytest.raises(FailedPrecondition) as refused:
            await jobs.move(move, attempt=2)
        assert refused.value.reason == "ATTEMPT_OVER"


async def test_checkpoint_is_kept_until_the_result_is_fixed(jobs: Jobs) -> None:
    await jobs.commit(picture())
    await jobs.commit(job())
    await jobs.move(Move.TAKE)
    await jobs.commit(KeepCheckpoint(name=JOB, attempt=1, checkpoint="t/default/blobs/c/1"))
    await jobs.move(Move.WORKER_DIED, attempt=1)
    await jobs.move(Move.TAKE)
    with pytest.raises(FailedPrecondition) as refused:
        await jobs.commit(KeepCheckpoint(name=JOB, attempt=1, checkpoint="t/default/blobs/c/2"))
    assert refused.value.reason == "ATTEMPT_OVER"
    row = await jobs.job()
    assert row["detail"] == {"checkpoint": "t/default/blobs/c/1"}
    blobs, _ = await jobs.ledger.read(SHARD, lambda db: list(TrainerStateMachine().blobs(db)))
    assert "t/default/blobs/c/1" in blobs
    etag = row["revision"]
    await jobs.commit(KeepCheckpoint(name=JOB, attempt=2, checkpoint="t/default/blobs/c/3"))
    assert (await jobs.job())["revision"] == etag  # its state has not changed
    await jobs.move(Move.FIX, attempt=2, detail={"embedding": "e"})
    assert (await jobs.job())["detail"] == {"embedding": "e"}
    with pytest.raises(FailedPrecondition) as refused:
        await jobs.commit(KeepCheckpoint(name=JOB, attempt=2, checkpoint="t/default/blobs/c/4"))
    assert refused.value.reason == "JOB_STATE"


async def test_job_with_a_fixed_result_cannot_be_cancelled_or_lost(jobs: Jobs) -> None:
    await jobs.commit(picture())
    await jobs.commit(job())
    await jobs.move(Move.TAKE)
    await jobs.move(Move.FIX)
    for move in (Move.CANCEL, Move.WORKER_DIED, Move.HAND_BACK, Move.TAKE, Move.RETRY):
        with pytest.raises(FailedPrecondition) as refused:
            await jobs.move(move)
        assert refused.value.reason == "JOB_STATE"
    assert (await jobs.job())["state"] == State.PUBLISHING


async def test_move_with_an_old_etag_is_refused(jobs: Jobs) -> None:
    await jobs.commit(picture())
    etag = (await jobs.commit(job()))["revision"]
    await jobs.move(Move.TAKE)
    with pytest.raises(EtagMismatch) as refused:
        await jobs.move(Move.CANCEL, etag=etag)
    assert refused.value.metadata["etag"] == (await jobs.job())["revision"] != etag


async def taken(jobs: Jobs, max_per_tenant: int) -> str:
    """The last letters of the jobs' names in the order in which the jobs are taken."""
    found = ""
    while (row := (await jobs.ledger.read(SHARD, lambda db: tables.next_queued(db, max_per_tenant)))[0]) is not None:
        found += row["name"][-1]
        await jobs.commit(MoveJob(name=row["name"], move=Move.TAKE))
    return found


async def test_highest_priority_is_taken_first_then_the_oldest_job(jobs: Jobs) -> None:
    await jobs.commit(picture())
    for name, priority in (("a", -1), ("b", 0), ("c", 5), ("d", 5)):
        await jobs.commit(job(f"tenants/default/jobs/{name}", priority))
    assert await taken(jobs, 10) == "cdba"


async def test_tenants_take_turns_up_to_their_limit_of_running_jobs(jobs: Jobs) -> None:
    await jobs.commit(picture())
    for name in "abcd":
        await jobs.commit(job(f"tenants/default/jobs/{name}", priority=9))
    for name, priority in (("x", 0), ("y", 0), ("z", -1)):
        await jobs.commit(job(f"tenants/shop/jobs/{name}", priority, tenant="shop"))
    # A tenant has at most three running jobs. A negative priority comes after all other jobs that may run.
    assert await taken(jobs, 3) == "axbycz"


async def test_picture_of_an_unfinished_job_cannot_be_deleted(jobs: Jobs) -> None:
    await jobs.commit(picture())
    await jobs.commit(job())
    with pytest.raises(FailedPrecondition) as refused:
        await jobs.commit(DeletePicture(name=PICTURE))
    assert (refused.value.reason, refused.value.metadata["job"]) == ("PICTURE_IN_USE", JOB)
    await jobs.move(Move.CANCEL)
    await jobs.commit(DeletePicture(name=PICTURE))
    with pytest.raises(NotFound):
        await jobs.commit(DeletePicture(name=PICTURE))
    with pytest.raises(InvalidArgument) as missing:
        await jobs.commit(job("tenants/default/jobs/j2"))
    assert missing.value.violations[0][0] == "job.examples[0].picture"


async def expiry(jobs: Jobs) -> float:
    """Days until the picture expires."""
    row, _ = await jobs.ledger.read(SHARD, lambda db: retention.picture(db, PICTURE))
    return float((row["expires_us"] - time.time_ns() // 1000) / DAY_US)


async def ends(jobs: Jobs, name: str, *moves: Move) -> None:
    for move in moves:
        await jobs.commit(MoveJob(name=name, move=move))


async def test_picture_expires_when_all_its_jobs_have_succeeded(jobs: Jobs) -> None:
    other = "tenants/default/jobs/j2"
    await jobs.commit(picture(lifetime_us=7 * DAY_US))
    for name in (JOB, other):
        await jobs.commit(job(name))
    await ends(jobs, JOB, Move.TAKE, Move.FIX, Move.FINISH)
    assert await expiry(jobs) > 6  # the other job still needs it
    await ends(jobs, other, Move.TAKE, Move.FIX, Move.FINISH)
    assert await expiry(jobs) <= 0
    await jobs.commit(picture(lifetime_us=7 * DAY_US))
    assert await expiry(jobs) > 6  # uploaded again


async def test_picture_that_was_uploaded_again_stays_for_the_next_job(jobs: Jobs) -> None:
    """Also if an older job ends between the upload and the next job."""
    other = "tenants/default/jobs/j2"
    await jobs.commit(picture(lifetime_us=7 * DAY_US))
    await jobs.commit(job())
    await ends(jobs, JOB, Move.TAKE, Move.FIX)
    await jobs.commit(picture(lifetime_us=7 * DAY_US))
    await ends(jobs, JOB, Move.FINISH)
    assert await expiry(jobs) > 6
    await jobs.commit(job(other))
    await ends(jobs, other, Move.TAKE, Move.FIX, Move.FINISH)
    assert await expiry(jobs) <= 0

    # The picture expires when the last of its jobs ends, also if that job is older than the upload.
    early, late = (f"tenants/default/jobs/{name}" for name in ("early", "late"))
    for name in (early, late):
        await jobs.commit(picture(lifetime_us=7 * DAY_US))
        await jobs.commit(job(name))
    await ends(jobs, late, Move.TAKE, Move.FIX, Move.FINISH)
    assert await expiry(jobs) > 6
    await ends(jobs, early, Move.TAKE, Move.FIX, Move.FINISH)
    assert await expiry(jobs) <= 0


async def test_picture_stays_a_day_after_a_job_failed(jobs: Jobs) -> None:
    other = "tenants/default/jobs/j2"
    await jobs.commit(picture(lifetime_us=DAY_US // 24))
    for name in (JOB, other):
        await jobs.commit(job(name))
    await ends(jobs, JOB, Move.TAKE, Move.FAIL)
    assert 0.9 < await expiry(jobs) <= 1
    # A job that succeeded does not take the picture from a job that may be retried.
    await ends(jobs, other, Move.TAKE, Move.FIX, Move.FINISH)
    assert 0.9 < await expiry(jobs) <= 1
    await ends(jobs, JOB, Move.RETRY, Move.TAKE, Move.FIX, Move.FINISH)
    assert await expiry(jobs) <= 0


async def test_bytes_of_pictures_are_limited_for_each_tenant(tmp_path: Path) -> None:
    small = TrainerStateMachine(TenantLimits(picture_bytes_per_tenant=7))
    ledger = Ledger.open(DiskStore(tmp_path / "store"), small, shards=SHARDS, view_folder=tmp_path / "view")
    jobs = Jobs(ledger)
    await jobs.commit(picture())
    await jobs.commit(picture())  # the same picture again
    await jobs.commit(replace(picture(), name=PICTURE.replace("a" * 64, "b" * 64)))
    with pytest.raises(ResourceExhausted) as refused:
        await jobs.commit(replace(picture(), name=PICTURE.replace("a" * 64, "c" * 64)))
    assert (refused.value.reason, refused.value.metadata) == ("PICTURE_BYTES", {"bytes": "6", "limit": "7"})
    await jobs.commit(replace(picture(), name=PICTURE.replace("default", "shop")))
    await ledger.close()


async def test_repeated_upload_keeps_the_blob_and_extends_the_lifetime(jobs: Jobs) -> None:
    first = await jobs.commit(picture(lifetime_us=DAY_US))
    again = await jobs.commit(picture(blob="t/default/blobs/a/2", lifetime_us=2 * DAY_US))
    assert again["blob"] == first["blob"]
    assert again["expires_us"] - first["expires_us"] >= DAY_US
    shorter = await jobs.commit(picture(blob="t/default/blobs/a/3", lifetime_us=1))
    assert shorter["expires_us"] == again["expires_us"]


async def test_expired_picture_is_deleted_unless_an_unfinished_job_needs_it(jobs: Jobs) -> None:
    await jobs.commit(picture(lifetime_us=DAY_US))
    assert await jobs.commit(DeletePicture(name=PICTURE, expired=True)) == {}
    await jobs.commit(job())
    later = time.time_ns() // 1000 + 2 * DAY_US
    names, _ = await jobs.ledger.read(SHARD, lambda db: retention.expired_pictures(db, later, 10))
    assert names == []
    await jobs.move(Move.CANCEL)
    names, _ = await jobs.ledger.read(SHARD, lambda db: retention.expired_pictures(db, later, 10))
    assert names == [PICTURE]


async def test_view_rebuilt_from_the_log_is_equal(jobs: Jobs, tmp_path: Path) -> None:
    await jobs.commit(picture())
    await jobs.commit(job())
    for move in (Move.TAKE, Move.WORKER_DIED, Move.TAKE, Move.FAIL, Move.RETRY, Move.TAKE, Move.FIX):
        await jobs.move(move, detail={"embedding": move.value} if move is Move.FIX else {})
    before = await jobs.job()
    await jobs.ledger.close()
    rebuilt = Jobs(
        Ledger.open(DiskStore(tmp_path / "store"), TrainerStateMachine(), shards=SHARDS, view_folder=tmp_path / "other")
    )
    assert await rebuilt.job() == before
    await rebuilt.ledger.close()
