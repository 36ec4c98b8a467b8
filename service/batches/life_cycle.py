"""The life of a batch. Pure: no torch, no grpc, no store."""

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """Where a batch is in its life."""

    ACTIVE = "ACTIVE"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


ENDED = frozenset(State) - {State.ACTIVE}


class Move(StrEnum):
    """What can happen to a batch. Being drawn is none: what is there in the store says how far it is."""

    FINISH = "FINISH"  # all pictures and the manifest are there
    FAIL = "FAIL"  # a picture cannot be drawn, and trying again would not help
    CANCEL = "CANCEL"


MOVES: Mapping[Move, State] = {
    Move.FINISH: State.SUCCEEDED,
    Move.FAIL: State.FAILED,
    Move.CANCEL: State.CANCELLED,
}


class WrongState(Exception):
    """The move does not begin where the batch is."""


def after(state: State, move: Move) -> State:
    """The state that `move` leads to; every one begins at ACTIVE. Raises WrongState."""
    if state is not State.ACTIVE:
        raise WrongState(f"is {state}; {move} needs {State.ACTIVE}")
    return MOVES[move]
