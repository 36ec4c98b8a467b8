"""The life of a batch. Pure: no torch, no grpc, no store."""

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """The state of a batch."""

    ACTIVE = "ACTIVE"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


ENDED = frozenset(State) - {State.ACTIVE}


class Move(StrEnum):
    """A transition between states of a batch. Progress is no transition: it follows from the objects in the store."""

    FINISH = "FINISH"  # the store has all pictures and the manifest
    FAIL = "FAIL"  # a picture cannot be drawn, and a retry would not help
    CANCEL = "CANCEL"


MOVES: Mapping[Move, State] = {
    Move.FINISH: State.SUCCEEDED,
    Move.FAIL: State.FAILED,
    Move.CANCEL: State.CANCELLED,
}


class WrongState(Exception):
    """The move is not allowed in the batch's state."""


def after(state: State, move: Move) -> State:
    """The state after `move`; every move starts in ACTIVE. Raises WrongState."""
    if state is not State.ACTIVE:
        raise WrongState(f"is {state}; {move} needs {State.ACTIVE}")
    return MOVES[move]
