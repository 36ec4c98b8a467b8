"""The life of a job, the same for training and evaluation. Pure: no torch, no grpc, no store."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """The state of a job."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PUBLISHING = "PUBLISHING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class Purpose(StrEnum):
    """What a job does, and whether a client or the trainer has created it."""

    TRAINING = "TRAINING"
    EVALUATION = "EVALUATION"
    FOLLOW_UP = "FOLLOW_UP"  # an evaluation that the trainer created


ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
UNFINISHED = frozenset(State) - ENDED


class Move(StrEnum):
    """A transition between states of a job."""

    TAKE = "TAKE"  # a worker starts an attempt
    HAND_BACK = "HAND_BACK"  # the worker stops or yields; the attempt number that clients see leaves it out
    WORKER_DIED = "LOSE"  # the value is stored in the log
    FIX = "FIX"  # the vectors or figures are final
    FINISH = "FINISH"  # the registry has the version or the evaluation
    FAIL = "FAIL"
    CANCEL = "CANCEL"
    RETRY = "RETRY"  # a client queues a failed or cancelled job again


# A PUBLISHING job cannot be cancelled or handed back, and survives the death of its worker: its result is fixed, and
# the registry may have it already.
MOVES: Mapping[Move, tuple[frozenset[State], State]] = {
    Move.TAKE: (frozenset({State.QUEUED}), State.RUNNING),
    Move.HAND_BACK: (frozenset({State.RUNNING}), State.QUEUED),
    Move.WORKER_DIED: (frozenset({State.RUNNING}), State.QUEUED),
    Move.FIX: (frozenset({State.RUNNING}), State.PUBLISHING),
    Move.FINISH: (frozenset({State.PUBLISHING}), State.SUCCEEDED),
    # Not from QUEUED: a worker that has lost the job could fail it while it waits for another worker.
    Move.FAIL: (UNFINISHED - {State.QUEUED}, State.FAILED),
    Move.CANCEL: (frozenset({State.QUEUED, State.RUNNING}), State.CANCELLED),
    Move.RETRY: (frozenset({State.FAILED, State.CANCELLED}), State.QUEUED),
}


class WrongState(Exception):
    """The move is not allowed in the job's state."""


@dataclass(frozen=True, kw_only=True)
class Life:
    """A job's position in its life. `attempt` counts how often a worker has taken the job, and never falls: it is a
    fencing token, and anything but the current attempt is refused. `handed_back` counts the attempts that were handed
    back, `worker_deaths` the workers that have died while they trained the job since it was created or retried."""

    state: State = State.QUEUED
    attempt: int = 0
    worker_deaths: int = 0
    handed_back: int = 0

    def after(self, move: Move) -> "Life":
        """The position after `move`. Raises WrongState."""
        allowed, state = MOVES[move]
        if self.state not in allowed:
            raise WrongState(f"is {self.state}; {move} needs {' or '.join(sorted(allowed))}")
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
