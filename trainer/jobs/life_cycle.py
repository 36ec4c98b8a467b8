"""The life of a job, which is the same whatever it is for. Pure: no torch, no grpc, no store."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Where a job is in its life."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PUBLISHING = "PUBLISHING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class Purpose(StrEnum):
    """What a job is for, and who wanted it: its client, or the trainer itself after a version was published."""

    TRAINING = "TRAINING"
    EVALUATION = "EVALUATION"
    FOLLOW_UP = "FOLLOW_UP"  # an evaluation that the trainer made


ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
UNFINISHED = frozenset(State) - ENDED


class Move(StrEnum):
    """What can happen to a job."""

    TAKE = "TAKE"  # a worker begins an attempt
    HAND_BACK = "HAND_BACK"  # the worker is told to stop; for the client the attempt does not count
    WORKER_DIED = "LOSE"  # the log's word for it
    FIX = "FIX"  # the vectors are learned, or the figures found, and are these for ever
    FINISH = "FINISH"  # the registry has the version, or the evaluation
    FAIL = "FAIL"
    CANCEL = "CANCEL"
    RETRY = "RETRY"  # somebody wants it after all, or tried again


# PUBLISHING cannot be cancelled, lost or handed back: its vectors are fixed, and whether the registry has them already
# may be unknown.
MOVES: Mapping[Move, tuple[frozenset[State], State]] = {
    Move.TAKE: (frozenset({State.QUEUED}), State.RUNNING),
    Move.HAND_BACK: (frozenset({State.RUNNING}), State.QUEUED),
    Move.WORKER_DIED: (frozenset({State.RUNNING}), State.QUEUED),
    Move.FIX: (frozenset({State.RUNNING}), State.PUBLISHING),
    Move.FINISH: (frozenset({State.PUBLISHING}), State.SUCCEEDED),
    # Not from QUEUED: a worker that lost the job would end it while it waits for another one.
    Move.FAIL: (UNFINISHED - {State.QUEUED}, State.FAILED),
    Move.CANCEL: (frozenset({State.QUEUED, State.RUNNING}), State.CANCELLED),
    Move.RETRY: (frozenset({State.FAILED, State.CANCELLED}), State.QUEUED),
}


class WrongState(Exception):
    """The move does not begin where the job is."""


@dataclass(frozen=True, kw_only=True)
class Life:
    """`attempt` counts how often a worker has taken the job, and never falls: it is a fencing token, and anything but
    the current attempt is refused. `handed_back` attempts were handed back; `worker_deaths` workers have died while
    they trained the job since it was created or retried."""

    state: State = State.QUEUED
    attempt: int = 0
    worker_deaths: int = 0
    handed_back: int = 0

    def after(self, move: Move) -> "Life":
        """Raises WrongState."""
        begins, state = MOVES[move]
        if self.state not in begins:
            raise WrongState(f"is {self.state}; {move} needs {' or '.join(sorted(begins))}")
        attempt, worker_deaths, handed_back = self.attempt, self.worker_deaths, self.handed_back
        match move:
            case Move.TAKE:
                attempt += 1
            case Move.HAND_BACK:
                handed_back += 1
            case Move.WORKER_DIED:
                worker_deaths += 1
            case Move.RETRY:
                worker_deaths = 0
        return Life(state=state, attempt=attempt, worker_deaths=worker_deaths, handed_back=handed_back)
