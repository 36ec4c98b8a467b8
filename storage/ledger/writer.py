"""One shard's writer thread. It alone changes the shard's view, puts its entries, and reads the entries of others.

A round: take all waiting commands and checks; decide the commands in order, each against the state after the ones
before; put their events as one entry. Won: commit the view's transaction and answer. Lost: roll it back, apply the
winner's entry, decide again. Nothing else is put to the shard until the entry's number is settled.
"""

import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from json import loads
from pathlib import Path
from threading import Condition, Thread
from typing import Any

import structlog

from storage.errors import Closed, Contention, Damaged, OutcomeUnknown, ViewFailed
from storage.ledger.entry import MAX_EVENTS, Entry, RecordedEvent, Revision, canonical, entry_name, event_bytes, fits
from storage.ledger.log import Backoff, Log, new_write_id, now_us
from storage.ledger.maintenance import CHANGES, Maintenance
from storage.ledger.metrics import LedgerMetrics
from storage.ledger.pending import Pending, Result, promise
from storage.ledger.segments import RUN, entries_after
from storage.ledger.snapshots import restore_newest
from storage.ledger.state_machine import Answer, CommittedEvent, StateMachine
from storage.ledger.view import View

_MAX_ROUNDS = 100
# A lost race does not mean that the store is overloaded, so the pauses are short: a long pause only loses more races.
_RACE_BACKOFF = Backoff(first_s=0.002, most_s=0.02)
# Another writer's entry is evidence of rivals for this long.
_RIVAL_WINDOW_S = 10.0
# Longest fairness back-off.
_MAX_RIVAL_PAUSE_S = 0.1
# Without evidence of rivals, only every sixth round pauses.
_PAUSE_EVERY = 6

_logger = structlog.get_logger(__name__)


class _DryRun(Exception):
    """Rolls back the events of a command with validate_only."""


class _Batch:
    """The decided events of one round, and the answers to deliver once they are committed."""

    def __init__(self, number: int, time_us: int) -> None:
        self.number = number
        self.time_us = time_us
        self.events: list[RecordedEvent] = []
        self.bytes = 0
        self.answers: list[tuple[Pending, Result | BaseException]] = []

    def deliver(self) -> None:
        for pending, outcome in self.answers:
            if isinstance(outcome, Result):
                pending.done.set_result(outcome)
            else:
                pending.done.set_exception(outcome)


class ShardWriter:
    """See the module. `view` is open once a check has succeeded."""

    def __init__(
        self,
        log: Log,
        state_machine: StateMachine[Any],
        shard: int,
        path: Path,
        *,
        maintenance: Maintenance,
        metrics: LedgerMetrics,
        moved: Callable[[], None],
    ) -> None:
        """`moved` is called from the thread whenever the view has advanced."""
        self._log = log
        self._maintenance = maintenance
        self._metrics = metrics
        self._state_machine = state_machine
        self._shard = shard
        self._path = path
        self._moved = moved
        self._wake = Condition()
        self._commands: deque[Pending] = deque()
        self._checks: list[Future[None]] = []
        self._stop = threading.Event()
        self._checked_at = float("-inf")
        self._rival_at = float("-inf")
        self._won_at = float("-inf")
        self._put_s = 0.0
        self._rounds = 0
        # Events applied since this shard was last reported to maintenance.
        self._changes = 0
        self._view: View | None = None
        self._end_checked = False
        metrics.lag.labels(shard).set_function(self.age_s)
        self._thread = Thread(target=self._run, name=f"shard-{shard}", daemon=True)
        self._thread.start()

    @property
    def view(self) -> View:
        """The shard's view; only after a check has succeeded."""
        assert self._view is not None
        return self._view

    def submit(self, pending: Pending) -> None:
        """Queue a command. Its future gets a Result, an error of the state machine or a StorageError."""
        with self._wake:
            if self._stop.is_set():
                raise Closed("the ledger is closed")
            self._commands.append(pending)
            self._wake.notify()

    def check(self) -> Future[None]:
        """A future that is done once the view shows every entry that existed at the time of the call."""
        future: Future[None] = promise()
        with self._wake:
            if self._stop.is_set():
                raise Closed("the ledger is closed")
            self._checks.append(future)
            self._wake.notify()
        return future

    def age_s(self) -> float:
        """Seconds since the start of the last successful check."""
        return time.monotonic() - self._checked_at

    def stop(self) -> None:
        """Stop the thread. Waiting commands get Closed, unsettled commits OutcomeUnknown. Blocks."""
        self._stop.set()
        with self._wake:
            self._wake.notify()
        self._thread.join()

    def close(self) -> None:
        """Close the view of a stopped writer, once it has no readers."""
        if self._view is not None:
            self._view.close()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._commands or self._checks or self._stop.is_set())
                ready = bool(self._commands)
            if ready:
                self._back_off_for_rivals()
            with self._wake:
                if self._stop.is_set():
                    break
                commands = [self._commands.popleft() for _ in range(min(len(self._commands), MAX_EVENTS))]
                checks, self._checks = self._checks, []
            began = time.monotonic()
            try:
                self._log.identity.check()
                if self._view is None or not self._end_checked:
                    self._open()
                if not commands:
                    self._catch_up()
                else:
                    self._commit(commands)
            except Exception as error:
                if self._view is not None:
                    self._view.drop()
                if not isinstance(error, OutcomeUnknown):
                    _logger.warning("shard failed", shard=self._shard, error=repr(error))
                if isinstance(error, sqlite3.OperationalError):
                    error = ViewFailed(f"the view of shard {self._shard} cannot be used: {error}")
                self._fail(commands, checks, error)
            else:
                self._checked_at = began
                for check in checks:
                    check.set_result(None)
        self._fail(list(self._commands), self._checks, Closed("the ledger is closed"))

    def _fail(self, commands: Sequence[Pending], checks: Sequence[Future[None]], error: Exception) -> None:
        for pending in commands:
            if not pending.done.done():
                pending.done.set_exception(error)
        for check in checks:
            if not check.done():
                check.set_exception(error)

    def _open(self) -> None:
        if self._view is None:
            view = View(self._path, store_id=self._log.store_id, shard=self._shard, state_machine=self._state_machine)
            try:
                self._begin(view)
            except BaseException:
                view.close()
                raise
            self._view = view
        self._catch_up()
        self._log.check_end(self._shard, self.view.position.entry)
        self._end_checked = True
        if self.view.position.entry:
            # A snapshot may be missing, for example when the replica that was to write it was killed.
            self._report()

    def _begin(self, view: View) -> None:
        restore_newest(self._log.store, view)
        at = view.position
        if at.entry:
            last = self._log.read(self._shard, at.entry)
            if last is None or last.write_id != at.write_id:
                _logger.warning("view of another log, rebuilding it", shard=self._shard, entry=at.entry)
                view.restart()

    def _catch_up(self) -> bool:
        """Apply the entries that others have put since. Returns whether there were any."""
        view, found = self.view, False
        for entry in entries_after(self._log, self._shard, view.position.entry):
            self._follow(entry)
            found = True
            if self._stop.is_set():
                break
        if found:
            self._show()
        return found

    def _follow(self, entry: Entry) -> None:
        """Apply another writer's entry."""
        if entry.time_us <= self.view.position.time_us:
            raise Damaged(entry_name(self._shard, entry.number), "its time is not after the previous entry's")
        self.view.replay(entry)
        self._changes += len(entry.events)
        self._metrics.replayed.inc()
        self._rival_at = time.monotonic()

    def _back_off_for_rivals(self) -> None:
        """Fairness back-off: the winner needs one request for its next entry, a loser two (it must read the winner's
        entry first); without a pause the winner would starve the others."""
        now = time.monotonic()
        self._rounds += 1
        if now - self._rival_at < _RIVAL_WINDOW_S:
            pause_s = random.uniform(0, 3 * self._put_s)
        elif self._rounds % _PAUSE_EVERY == 0:
            # A rival that has never won leaves no entry as evidence.
            pause_s = 3 * self._put_s
        else:
            return
        self._stop.wait(max(0.0, self._won_at + min(pause_s, _MAX_RIVAL_PAUSE_S) - now))

    def _commit(self, commands: Sequence[Pending]) -> None:
        rounds = iter(_RACE_BACKOFF.pauses())
        for number in range(_MAX_ROUNDS):
            claimed = [pending for pending in commands if not pending.done.done() and pending.claim()]
            batch, rest = self._decide(claimed)
            if not batch.events:
                self.view.drop()
                # Refusals and answers from the view are valid only if the view is at the end of the log.
                if self._catch_up():
                    _release(claimed)
                    continue
                batch.deliver()
                return self._requeue(rest)
            entry = self._entry(batch)
            try:
                self._log.clock.check()
                began = time.monotonic()
                winner = self._log.settle(entry, self._stop)
            except BaseException:
                self.view.drop()
                raise
            if winner.write_id == entry.write_id:
                self._won_at = time.monotonic()
                self._put_s = self._won_at - began
                self._keep(entry, batch)
                batch.deliver()
                self._metrics.entry_bytes.observe(batch.bytes)
                self._metrics.entry_events.observe(len(batch.events))
                self._show()
                return self._requeue(rest)
            self._metrics.lost.inc()
            self.view.drop()
            _release(claimed)
            self._follow(winner)
            self._show()
            if number % 2:
                # Two races lost in a row. Pause before catching up, so that the next decision sees the newest entry.
                self._stop.wait(next(rounds))
                self._catch_up()
        error = Contention(
            f"other writers committed first in {_MAX_ROUNDS} rounds, nothing was changed: try again",
            shard=str(self._shard),
        )
        return self._fail(commands, (), error)

    def _keep(self, entry: Entry, batch: _Batch) -> None:
        try:
            self.view.keep(entry)
        except Exception as error:
            # The log has the entry, so the view will apply it from there; a repeated request then gets its answer.
            _logger.error("view not written", shard=self._shard, error=repr(error))
            self.view.drop()
            raise OutcomeUnknown(
                "the change was committed, but the view could not be written: repeat the call with the same request id"
            ) from error
        self._changes += len(entry.events)
        if entry.number % RUN == 0 or self._changes >= CHANGES:
            self._report()

    def _report(self) -> None:
        self._changes = 0
        self._maintenance.due(self.view)

    def _show(self) -> None:
        self._metrics.entry.labels(self._shard).set(self.view.position.entry)
        self._moved()

    def _requeue(self, rest: Sequence[Pending]) -> None:
        _release(rest)
        with self._wake:
            self._commands.extendleft(reversed(rest))

    def _entry(self, batch: _Batch) -> Entry:
        return Entry(
            store_id=self._log.store_id,
            shard=self._shard,
            number=batch.number,
            time_us=batch.time_us,
            write_id=new_write_id(),
            events=tuple(batch.events),
        )

    def _decide(self, claimed: Sequence[Pending]) -> tuple[_Batch, Sequence[Pending]]:
        """Decide as many commands as fit one entry, in a transaction of the view that stays open. Also returns the
        commands that did not fit."""
        at = self.view.position
        batch = _Batch(at.entry + 1, max(at.time_us + 1, now_us()))
        self.view.begin()
        for place, pending in enumerate(claimed):
            events: list[RecordedEvent] = []
            outcome: Result | BaseException
            try:
                with self.view.attempt():
                    outcome = self._decide_one(pending, batch, events)
                    size = event_bytes(events)
                    if not fits(len(batch.events) + len(events), batch.bytes + size):
                        raise _Full
                    if pending.validate_only:
                        raise _DryRun
                batch.events += events
                batch.bytes += size
            except _Full:
                return batch, claimed[place:]
            except _DryRun:
                pass
            except sqlite3.OperationalError:
                raise  # a fault of the view, not of this command
            except Exception as error:
                outcome = error
            batch.answers.append((pending, outcome))
        return batch, ()

    def _decide_one(self, pending: Pending, batch: _Batch, events: list[RecordedEvent]) -> Result:
        view = self.view
        first = view.remembered(pending.tenant, pending.request_id, pending.digest, batch.time_us)
        if first is not None:
            return Result(value=first.value, revision=first.revision)
        decision = self._state_machine.decide(view.begun, pending.command, batch.time_us)
        if isinstance(decision, Answer):
            at = view.position
            return Result(value=canonical(decision.value), revision=self._revision(at.entry, at.index))
        answer = ""
        for event in decision:
            revision = self._revision(batch.number, len(batch.events) + len(events))
            recorded = pending.recorded(event)
            answer = view.write(CommittedEvent.of(recorded, revision, batch.time_us))
            events.append(recorded)
        return Result(value=loads(answer), revision=revision)

    def _revision(self, entry: int, index: int) -> Revision:
        return Revision(store_id=self._log.store_id, shard=self._shard, entry=entry, index=index)


class _Full(Exception):
    """The events of a command do not fit into the batch's entry."""


def _release(pendings: Sequence[Pending]) -> None:
    for pending in pendings:
        pending.release()
