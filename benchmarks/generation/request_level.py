"""The engine with batches of whole requests: a Generation server as `python -m service`, but who is in a call stays in
it to the end, and nobody joins before all have ended. What batching servers do that cannot join between two steps.

It is a kind one: requests with different schedulers, steps and guidance share a batch, which such servers seldom allow.
"""

from typing import Any

from rpc.server import run
from service.__main__ import main
from service.scheduling.admission import Roster, Ticket


class RequestLevel(Roster):
    """A roster whose groups last."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(**limits)
        self._group: list[Ticket] = []

    def next_group(self, now: float, *rules: Any) -> list[Ticket]:
        self._group = [ticket for ticket in self._group if ticket.id in self._tickets]
        if not self._group:
            self._group = super().next_group(now, *rules)
        return self._group


if __name__ == "__main__":
    run("generation", main(RequestLevel))
