"""Reads the rows of jobs and pictures, and commits the commands that change them."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import grpc.aio
from pseudoword.names import JobName
from pseudoword.trainer.v1 import resources_pb2

from rpc.ledger_store import LedgerStore
from rpc.retry import retry_while_unavailable
from storage.errors import StorageError
from storage.ledger.entry import Revision
from storage.ledger.ledger import Ledger
from storage.sql import Condition
from trainer.jobs import retention, tables
from trainer.jobs.commands import AddPicture, Command, DeletePicture, MoveJob
from trainer.jobs.conversions import job_of
from trainer.jobs.job_events import JobEvents
from trainer.jobs.life_cycle import State
from trainer.jobs.state_machine import SHARD
from trainer.jobs.tables import Row
from trainer.metrics import TrainerMetrics

Context = grpc.aio.ServicerContext[Any, Any]

_COMMIT_TIMEOUT = timedelta(seconds=30)
# A cached read shows at least this process's own changes and those that it was notified of. If other processes change
# jobs too, `follow` keeps the view fresh.
_CACHED = timedelta.max
_POLL_INTERVAL = timedelta(seconds=0.3)


class JobStore(LedgerStore[Command]):
    """One trainer's jobs and pictures; `events` notifies of their changes."""

    def __init__(self, ledger: Ledger[Command], metrics: TrainerMetrics) -> None:
        super().__init__(ledger, actor="trainer", commit_timeout=_COMMIT_TIMEOUT)
        self.events = JobEvents()
        self._metrics = metrics

    async def commit(self, tenant: str, command: Command, request: Any, context: Context) -> Row:
        """Commits a client's command. Raises the state machine's refusals, and StorageErrors."""
        result = await self._commit(tenant, command, request, context)
        await self._changed(command)
        return result.value

    async def move(self, move: MoveJob) -> Row:
        """Commits a change of state that the trainer itself makes, and retries until the store accepts it. Raises the
        state machine's refusals, and Closed."""
        return await self.commit_own(move, JobName.parse(move.name).tenant)

    async def commit_own(self, command: Command, tenant: str) -> Row:
        """As `move`, for any command."""
        result = await self._commit_own(tenant, command)
        await self._changed(command)
        return result.value

    async def row(self, name: str, *, cached: bool = False) -> tuple[Row, Revision]:
        """A job's row, and the revision that shows it. Raises NotFound."""
        staleness = _CACHED if cached else None
        return await self.ledger.read(SHARD, lambda db: tables.job(db, name), max_staleness=staleness)

    async def page(
        self, tenant: str, after: Sequence[Any] | None, limit: int, condition: Condition
    ) -> tuple[list[Row], Revision]:
        """As tables.jobs."""
        return await self.ledger.read(SHARD, lambda db: tables.jobs(db, tenant, after, limit, condition))

    def message(self, row: Row, revision: Revision | str) -> resources_pb2.Job:
        """A row as a Job, with the newest progress that this process knows."""
        job = job_of(row, str(revision))
        progress = self.events.progress(job.name)
        if progress is not None:
            job.progress.CopyFrom(progress)
        return job

    async def next_queued(self, max_per_tenant: int) -> Row | None:
        """The job to take next, from the cached view; the log refuses to move a job that is no longer queued."""
        row, _ = await retry_while_unavailable(
            lambda: self.ledger.read(SHARD, lambda db: tables.next_queued(db, max_per_tenant), max_staleness=_CACHED)
        )
        return row

    async def in_state(self, state: State) -> list[Row]:
        """Rows of all jobs in `state`, oldest first."""
        rows, _ = await retry_while_unavailable(lambda: self.ledger.read(SHARD, lambda db: tables.in_state(db, state)))
        return rows

    async def unfinished(self) -> list[Row]:
        """Rows of all jobs that have not ended, oldest first."""
        rows, _ = await retry_while_unavailable(lambda: self.ledger.read(SHARD, tables.unfinished))
        return rows

    async def picture(self, name: str) -> Row:
        """A picture's row. Raises NotFound."""
        row, _ = await self.ledger.read(SHARD, lambda db: retention.picture(db, name))
        return row

    async def follow(self) -> None:
        """Notifies `events` of other processes' changes, as of this process's own, until cancelled."""
        _, after = await retry_while_unavailable(lambda: self.ledger.read(SHARD, lambda db: None))
        while True:
            changes, after = await retry_while_unavailable(
                partial(self.ledger.changes, SHARD, after, max_staleness=_POLL_INTERVAL)
            )
            for event in changes:
                self.events.changed(event.body["name"], moved=event.kind == "job-moved")
            if changes:
                await self._count()
            else:
                await self.ledger.wait_for_changes({SHARD}, _POLL_INTERVAL)

    async def count(self) -> None:
        """Sets the gauges of jobs by state."""
        counts, _ = await self.ledger.read(SHARD, tables.counts, max_staleness=_CACHED)
        for gauge, by_state in zip((self._metrics.jobs, self._metrics.evaluations), counts, strict=True):
            for state, count in by_state.items():
                gauge.labels(state.lower()).set(count)

    async def _changed(self, command: Command) -> None:
        is_picture = isinstance(command, AddPicture | DeletePicture)
        self.events.changed(command.name, moved=isinstance(command, MoveJob), here=not is_picture)
        await self._count()

    async def _count(self) -> None:
        with suppress(StorageError):  # the change is committed; the next one corrects the gauges
            await self.count()
