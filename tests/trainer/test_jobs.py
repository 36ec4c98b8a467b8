"""The life of a job: as a table, and as the ledger keeps it."""

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
def test_whatever_happens_to_a_job(moves: list[Move]) -> None:
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


class Spoken:
    """A trainer's state machine on a database of its own, without a log: what is decided is applied."""

    def __init__(self, terms: TenantLimits) -> None:
        self._state_machine = TrainerStateMachine(terms)
        self._count = 0
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        self.db.row_factory = sqlite3.Row
        self._state_machine.create(self.db)

    def say(self, command: Command) -> None:
        """Raises what the state machine refuses with."""
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


# Towards success; None below means this one.
ONWARDS = {"QUEUED": Move.TAKE, "RUNNING": Move.FIX, "PUBLISHING": Move.FINISH}
moves = st.one_of(st.none(), st.none(), st.sampled_from(Move))


@given(st.lists(st.tuples(st.integers(0, 5), moves), min_size=20, max_size=60), st.integers(0, 2))
def test_whatever_happens_each_published_version_has_an_evaluation_while_there_is_room(
    happens: list[tuple[int, Move | None]], room: int
) -> None:
    """And no picture is let go that an unfinished job needs."""
    spoken = Spoken(TenantLimits(follow_ups=room, unfinished_per_tenant=6))
    spoken.say(picture())
    for name in "abc":
        spoken.say(job(f"tenants/default/jobs/{name}"))
    for index, wanted in happens:
        rows = {row["name"]: row for row in spoken.jobs()}
        name = sorted(rows)[index % len(rows)]
        move = wanted or ONWARDS.get(rows[name]["state"], Move.RETRY)
        waiting = [one for one in rows.values() if one["purpose"] == "FOLLOW_UP" and one["state"] in UNFINISHED]
        try:
            spoken.say(MoveJob(name=name, move=move, detail={"version": f"{name}'s"} if move is Move.FINISH else {}))
        except (FailedPrecondition, ResourceExhausted, InvalidArgument):
            assert [row["name"] for row in spoken.jobs()] == [*rows]
            continue
        made = {row["name"]: row for row in spoken.jobs() if row["name"] not in rows}
        follows = move is Move.FINISH and rows[name]["purpose"] == "TRAINING" and len(waiting) < room
        assert list(made) == ([f"{name}-evaluation"] if follows else [])
        for row in made.values():
            assert (row["state"], row["priority"], row["purpose"]) == ("QUEUED", LAST_PRIORITY, "FOLLOW_UP")
            assert row["spec"]["evaluates"] == f"{name}'s"
            assert row["spec"]["examples"] == rows[name]["spec"]["examples"]
        if any(row["state"] in UNFINISHED for row in spoken.jobs()):
            assert retention.expired_pictures(spoken.db, 2**62, 10) == []
            assert retention.picture(spoken.db, PICTURE)["expires_us"] >= DAY_US
            with pytest.raises(FailedPrecondition):
                retention.refuse_needed(spoken.db, PICTURE)


async def test_evaluations_take_no_place_of_jobs_that_train(tmp_path: Path) -> None:
    terms = TenantLimits(follow_ups=1, unfinished_per_tenant=1)
    ledger = Ledger.open(
        DiskStore(tmp_path / "store"), TrainerStateMachine(terms), shards=SHARDS, view_folder=tmp_path / "v"
    )
    kept = Kept(ledger)
    await kept.commit(picture(lifetime_us=7 * DAY_US))
    other = "tenants/default/jobs/j2"
    rows = []
    for name in (JOB, other):
        await kept.commit(job(name))
        await ends(kept, name, Move.TAKE, Move.FIX)
        rows.append(await kept.commit(MoveJob(name=name, move=Move.FINISH, detail={"version": "v"})))
    # The second one finds the place of its evaluation taken.
    assert [row["detail"].get("evaluation_job") for row in rows] == [f"{JOB}-evaluation", None]
    assert await expiry(kept) > 6

    own = job("tenants/default/jobs/j3")
    await kept.commit(replace(own, spec=dict(own.spec) | {"evaluates": "v"}))
    with pytest.raises(ResourceExhausted) as refused:
        await kept.commit(replace(own, name="tenants/default/jobs/j4", spec=dict(own.spec) | {"evaluates": "v"}))
    assert refused.value.reason == "TENANT_JOBS"
    await kept.commit(job("tenants/default/jobs/j5"))
    counted = [found[State.QUEUED] for found in (await ledger.read(SHARD, tables.counts))[0]]
    assert counted == [1, 2]
    # Those that are held take no tenant's place either.
    for name in ("j3", f"{JOB.rsplit('/', 1)[1]}-evaluation"):
        await kept.commit(MoveJob(name=f"tenants/default/jobs/{name}", move=Move.TAKE))
    assert await taken(kept, 1) == "5"
    await ends(kept, f"{JOB}-evaluation", Move.FIX, Move.FINISH)
    await ends(kept, "tenants/default/jobs/j3", Move.FIX, Move.FINISH)
    await ends(kept, "tenants/default/jobs/j5", Move.FIX)
    assert await expiry(kept) > 6
    await kept.commit(MoveJob(name="tenants/default/jobs/j5", move=Move.FINISH, detail={"version": "v5"}))
    await ends(kept, "tenants/default/jobs/j5-evaluation", Move.TAKE, Move.FIX, Move.FINISH)
    assert await expiry(kept) <= 0
    before = await kept.job()
    await ledger.close()
    anew = Kept(
        Ledger.open(DiskStore(tmp_path / "store"), TrainerStateMachine(), shards=SHARDS, view_folder=tmp_path / "other")
    )
    assert await anew.job() == before
    await anew.ledger.close()


def test_a_retry_forgets_the_workers_that_were_lost() -> None:
    life = Life()
    for _ in range(2):
        life = life.after(Move.TAKE).after(Move.WORKER_DIED)
    assert life.worker_deaths == 2
    life = life.after(Move.TAKE).after(Move.FAIL).after(Move.RETRY)
    assert (life.worker_deaths, life.attempt) == (0, 3)


class Kept:
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
async def kept(tmp_path: Path) -> AsyncIterator[Kept]:
    ledger = Ledger.open(
        DiskStore(tmp_path / "store"), TrainerStateMachine(), shards=SHARDS, view_folder=tmp_path / "view"
    )
    yield Kept(ledger)
    await ledger.close()


async def test_an_attempt_that_lost_its_job_cannot_speak_for_it(kept: Kept) -> None:
    await kept.commit(picture())
    await kept.commit(job())
    assert (await kept.move(Move.TAKE))["attempt"] == 1
    await kept.move(Move.WORKER_DIED, attempt=1)
    assert (await kept.move(Move.TAKE))["attempt"] == 2
    with pytest.raises(FailedPrecondition) as refused:
        await kept.move(Move.FIX, attempt=1, detail={"embedding": "of the first"})
    assert refused.value.reason == "ATTEMPT_OVER"
    await kept.move(Move.FIX, attempt=2, detail={"embedding": "of the second"})
    row = await kept.move(Move.FINISH, attempt=2, detail={"version": "v"})
    assert row["detail"] == {"embedding": "of the second", "version": "v"}
    assert row["ended_us"] >= row["started_us"] >= row["created_us"]


async def test_an_attempt_number_is_given_once_and_a_worker_that_lost_its_job_cannot_end_it(kept: Kept) -> None:
    await kept.commit(picture())
    await kept.commit(job())
    await kept.move(Move.TAKE)
    await kept.move(Move.WORKER_DIED, attempt=1)
    with pytest.raises(FailedPrecondition) as refused:  # it waits for another one
        await kept.move(Move.FAIL, attempt=1)
    assert refused.value.reason == "JOB_STATE"
    await kept.move(Move.TAKE)
    await kept.move(Move.HAND_BACK, attempt=2)
    row = await kept.move(Move.TAKE)
    assert (row["attempt"], job_of(row, "").attempt) == (3, 2)
    for move in (Move.HAND_BACK, Move.FIX, Move.FAIL, Move.WORKER_DIED):
        with pytest.raises(FailedPrecondition) as refused:
            await kept.move(move, attempt=2)
        assert refused.value.reason == "ATTEMPT_OVER"


async def test_a_checkpoint_lasts_until_the_job_is_fixed_or_has_ended(kept: Kept) -> None:
    await kept.commit(picture())
    await kept.commit(job())
    await kept.move(Move.TAKE)
    await kept.commit(KeepCheckpoint(name=JOB, attempt=1, checkpoint="t/default/blobs/c/1"))
    await kept.move(Move.WORKER_DIED, attempt=1)
    await kept.move(Move.TAKE)
    with pytest.raises(FailedPrecondition) as refused:
        await kept.commit(KeepCheckpoint(name=JOB, attempt=1, checkpoint="t/default/blobs/c/2"))
    assert refused.value.reason == "ATTEMPT_OVER"
    row = await kept.job()
    assert row["detail"] == {"checkpoint": "t/default/blobs/c/1"}
    blobs, _ = await kept.ledger.read(SHARD, lambda db: list(TrainerStateMachine().blobs(db)))
    assert "t/default/blobs/c/1" in blobs
    etag = row["revision"]
    await kept.commit(KeepCheckpoint(name=JOB, attempt=2, checkpoint="t/default/blobs/c/3"))
    assert (await kept.job())["revision"] == etag  # no change of its state
    await kept.move(Move.FIX, attempt=2, detail={"embedding": "e"})
    assert (await kept.job())["detail"] == {"embedding": "e"}
    with pytest.raises(FailedPrecondition) as refused:
        await kept.commit(KeepCheckpoint(name=JOB, attempt=2, checkpoint="t/default/blobs/c/4"))
    assert refused.value.reason == "JOB_STATE"


async def test_what_is_fixed_cannot_be_cancelled_nor_lost(kept: Kept) -> None:
    await kept.commit(picture())
    await kept.commit(job())
    await kept.move(Move.TAKE)
    await kept.move(Move.FIX)
    for move in (Move.CANCEL, Move.WORKER_DIED, Move.HAND_BACK, Move.TAKE, Move.RETRY):
        with pytest.raises(FailedPrecondition) as refused:
            await kept.move(move)
        assert refused.value.reason == "JOB_STATE"
    assert (await kept.job())["state"] == State.PUBLISHING


async def test_etags(kept: Kept) -> None:
    await kept.commit(picture())
    etag = (await kept.commit(job()))["revision"]
    await kept.move(Move.TAKE)
    with pytest.raises(EtagMismatch) as refused:
        await kept.move(Move.CANCEL, etag=etag)
    assert refused.value.metadata["etag"] == (await kept.job())["revision"] != etag


async def taken(kept: Kept, max_per_tenant: int) -> str:
    """Last letters of the jobs' names in the order in which they are taken."""
    found = ""
    while (row := (await kept.ledger.read(SHARD, lambda db: tables.next_queued(db, max_per_tenant)))[0]) is not None:
        found += row["name"][-1]
        await kept.commit(MoveJob(name=row["name"], move=Move.TAKE))
    return found


async def test_the_oldest_of_the_highest_priority_is_first(kept: Kept) -> None:
    await kept.commit(picture())
    for name, priority in (("a", -1), ("b", 0), ("c", 5), ("d", 5)):
        await kept.commit(job(f"tenants/default/jobs/{name}", priority))
    assert await taken(kept, 10) == "cdba"


async def test_tenants_take_turns_however_many_jobs_one_has(kept: Kept) -> None:
    await kept.commit(picture())
    for name in "abcd":
        await kept.commit(job(f"tenants/default/jobs/{name}", priority=9))
    for name, priority in (("x", 0), ("y", 0), ("z", -1)):
        await kept.commit(job(f"tenants/shop/jobs/{name}", priority, tenant="shop"))
    # Nobody has more than three, and what is below 0 comes after everything that may still be taken.
    assert await taken(kept, 3) == "axbycz"


async def test_pictures_stay_while_a_job_needs_them(kept: Kept) -> None:
    await kept.commit(picture())
    await kept.commit(job())
    with pytest.raises(FailedPrecondition) as refused:
        await kept.commit(DeletePicture(name=PICTURE))
    assert (refused.value.reason, refused.value.metadata["job"]) == ("PICTURE_IN_USE", JOB)
    await kept.move(Move.CANCEL)
    await kept.commit(DeletePicture(name=PICTURE))
    with pytest.raises(NotFound):
        await kept.commit(DeletePicture(name=PICTURE))
    with pytest.raises(InvalidArgument) as missing:
        await kept.commit(job("tenants/default/jobs/j2"))
    assert missing.value.violations[0][0] == "job.examples[0].picture"


async def expiry(kept: Kept) -> float:
    """Days until the picture may go."""
    row, _ = await kept.ledger.read(SHARD, lambda db: retention.picture(db, PICTURE))
    return float((row["expires_us"] - time.time_ns() // 1000) / DAY_US)


async def ends(kept: Kept, name: str, *moves: Move) -> None:
    for move in moves:
        await kept.commit(MoveJob(name=name, move=move))


async def test_pictures_go_when_their_jobs_have_succeeded(kept: Kept) -> None:
    other = "tenants/default/jobs/j2"
    await kept.commit(picture(lifetime_us=7 * DAY_US))
    for name in (JOB, other):
        await kept.commit(job(name))
    await ends(kept, JOB, Move.TAKE, Move.FIX, Move.FINISH)
    assert await expiry(kept) > 6  # the other one still needs it
    await ends(kept, other, Move.TAKE, Move.FIX, Move.FINISH)
    assert await expiry(kept) <= 0
    await kept.commit(picture(lifetime_us=7 * DAY_US))
    assert await expiry(kept) > 6  # uploaded again


async def test_pictures_that_are_uploaded_again_stay_for_the_job_that_is_still_to_come(kept: Kept) -> None:
    """Whatever ends between the upload and the job."""
    other = "tenants/default/jobs/j2"
    await kept.commit(picture(lifetime_us=7 * DAY_US))
    await kept.commit(job())
    await ends(kept, JOB, Move.TAKE, Move.FIX)
    await kept.commit(picture(lifetime_us=7 * DAY_US))
    await ends(kept, JOB, Move.FINISH)
    assert await expiry(kept) > 6
    await kept.commit(job(other))
    await ends(kept, other, Move.TAKE, Move.FIX, Move.FINISH)
    assert await expiry(kept) <= 0

    # Whichever of two ends last lets them go, also one that was there before the upload.
    early, late = (f"tenants/default/jobs/{name}" for name in ("early", "late"))
    for name in (early, late):
        await kept.commit(picture(lifetime_us=7 * DAY_US))
        await kept.commit(job(name))
    await ends(kept, late, Move.TAKE, Move.FIX, Move.FINISH)
    assert await expiry(kept) > 6
    await ends(kept, early, Move.TAKE, Move.FIX, Move.FINISH)
    assert await expiry(kept) <= 0


async def test_pictures_stay_a_day_after_a_failure(kept: Kept) -> None:
    other = "tenants/default/jobs/j2"
    await kept.commit(picture(lifetime_us=DAY_US // 24))
    for name in (JOB, other):
        await kept.commit(job(name))
    await ends(kept, JOB, Move.TAKE, Move.FAIL)
    assert 0.9 < await expiry(kept) <= 1
    # One that has succeeded does not take them from one that may be retried.
    await ends(kept, other, Move.TAKE, Move.FIX, Move.FINISH)
    assert 0.9 < await expiry(kept) <= 1
    await ends(kept, JOB, Move.RETRY, Move.TAKE, Move.FIX, Move.FINISH)
    assert await expiry(kept) <= 0


async def test_a_tenants_pictures_have_so_many_bytes(tmp_path: Path) -> None:
    small = TrainerStateMachine(TenantLimits(picture_bytes_per_tenant=7))
    ledger = Ledger.open(DiskStore(tmp_path / "store"), small, shards=SHARDS, view_folder=tmp_path / "view")
    kept = Kept(ledger)
    await kept.commit(picture())
    await kept.commit(picture())  # the same one again
    await kept.commit(replace(picture(), name=PICTURE.replace("a" * 64, "b" * 64)))
    with pytest.raises(ResourceExhausted) as refused:
        await kept.commit(replace(picture(), name=PICTURE.replace("a" * 64, "c" * 64)))
    assert (refused.value.reason, refused.value.metadata) == ("PICTURE_BYTES", {"bytes": "6", "limit": "7"})
    await kept.commit(replace(picture(), name=PICTURE.replace("default", "shop")))
    await ledger.close()


async def test_the_same_picture_again_keeps_its_bytes_and_stays_longer(kept: Kept) -> None:
    first = await kept.commit(picture(lifetime_us=DAY_US))
    again = await kept.commit(picture(blob="t/default/blobs/a/2", lifetime_us=2 * DAY_US))
    assert again["blob"] == first["blob"]
    assert again["expires_us"] - first["expires_us"] >= DAY_US
    shorter = await kept.commit(picture(blob="t/default/blobs/a/3", lifetime_us=1))
    assert shorter["expires_us"] == again["expires_us"]


async def test_expired_pictures_go_unless_an_unfinished_job_needs_them(kept: Kept) -> None:
    await kept.commit(picture(lifetime_us=DAY_US))
    assert await kept.commit(DeletePicture(name=PICTURE, expired=True)) == {}
    await kept.commit(job())
    later = time.time_ns() // 1000 + 2 * DAY_US
    names, _ = await kept.ledger.read(SHARD, lambda db: retention.expired_pictures(db, later, 10))
    assert names == []
    await kept.move(Move.CANCEL)
    names, _ = await kept.ledger.read(SHARD, lambda db: retention.expired_pictures(db, later, 10))
    assert names == [PICTURE]


async def test_a_view_made_anew_from_the_log_is_the_same(kept: Kept, tmp_path: Path) -> None:
    await kept.commit(picture())
    await kept.commit(job())
    for move in (Move.TAKE, Move.WORKER_DIED, Move.TAKE, Move.FAIL, Move.RETRY, Move.TAKE, Move.FIX):
        await kept.move(move, detail={"embedding": move.value} if move is Move.FIX else {})
    before = await kept.job()
    await kept.ledger.close()
    anew = Kept(
        Ledger.open(DiskStore(tmp_path / "store"), TrainerStateMachine(), shards=SHARDS, view_folder=tmp_path / "other")
    )
    assert await anew.job() == before
    await anew.ledger.close()
