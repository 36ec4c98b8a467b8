"""The rules by which an engine works, as the engine and the simulator use them: who is let in, who runs next, and how
long that is expected to take. Pure: no torch, no grpc, the time handed in."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from service.scheduling.admission import Roster, Ticket
from service.scheduling.cost_model import Shape, StepCostModel

_SURE = 0.7  # of what a call is expected to take: surely no less than that


class TooLate(Exception):
    """What is asked for takes `needed_s` with the model for itself, and its deadline is `left_s` away."""

    def __init__(self, needed_s: float, left_s: float) -> None:
        super().__init__(
            f"drawing this takes about {needed_s:.2f} s, and the deadline is {left_s:.2f} s away: "
            "allow more time, or ask for fewer steps or pictures"
        )
        self.needed_s = needed_s
        self.left_s = left_s


class Overloaded(Exception):
    """With what is before it, a request would end about `late_s` after its deadline."""

    def __init__(self, late_s: float) -> None:
        super().__init__(
            f"with the work that is before it, drawing this would end about {late_s:.2f} s after its deadline"
        )
        self.late_s = late_s


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request: `pictures`, each of `rows` rows in each of `calls` calls of the denoiser. Times on the clock of
    `now`, in seconds."""

    tenant: str
    shape: Shape
    rows: int
    calls: int
    pictures: int = 1
    exact: bool = False
    priority: int = 0
    deadline: float = inf
    arrived: float = 0.0

    def ticket(self, id: int) -> Ticket:
        """That of one of its pictures."""
        return Ticket(
            id=id,
            tenant=self.tenant,
            shape=self.shape,
            rows=self.rows,
            exact=self.exact,
            priority=self.priority,
            deadline=self.deadline,
            arrived=self.arrived,
        )


class Policy:
    """A roster and a pace. Calls left are counted here, a picture at a time."""

    def __init__(self, roster: Roster, pace: StepCostModel) -> None:
        self.roster = roster
        self.pace = pace
        self._left: dict[int, tuple[Ticket, int]] = {}

    def solo_s(self, ask: Ask) -> float:
        """Seconds that `ask` takes with the model for itself, decoding left out."""
        return self.pace.solo_s(
            ask.shape, pictures=ask.pictures, rows=ask.rows, calls=ask.calls, limit=self.roster.max_rows
        )

    def let_in(self, ask: Ask, now: float) -> None:
        """Keeps places for `ask`, which enter() or give_back() takes. Raises TooLate, Overloaded, Full.

        Without Overloaded, everybody in a queue that is too long would share in the work, and nobody would be in time.
        """
        needed_s, left_s = self.solo_s(ask), max(0.0, ask.deadline - now)
        if needed_s > left_s:
            raise TooLate(needed_s, left_s)
        late_s = self.work_ahead_s(ask.priority, ask.deadline) + needed_s - left_s
        if ask.deadline < inf and late_s > 0:
            raise Overloaded(late_s)
        self.roster.reserve(ask.tenant, ask.pictures)

    def give_back(self, ask: Ask) -> None:
        """The places that let_in kept are free again."""
        self.roster.release(ask.tenant, ask.pictures)

    def enter(self, ask: Ask, ids: Sequence[int]) -> None:
        """The pictures of `ask` take the places that were kept."""
        self.give_back(ask)
        for id in ids:
            ticket = ask.ticket(id)
            self.roster.admit(ticket)
            self._left[id] = (ticket, ask.calls)

    def leave(self, id: int) -> None:
        """A picture is finished, or is not wanted any more."""
        self._left.pop(id, None)
        self.roster.leave(id)

    def next_group(self, now: float) -> list[Ticket]:
        """The pictures of the next call."""
        return self.roster.next_group(now, self._tried_rows, self._free_rows)

    def stepped(self, ids: Sequence[int]) -> None:
        """A call was made for these pictures."""
        for id in ids:
            ticket, calls = self._left[id]
            self._left[id] = (ticket, calls - 1)

    def hopeless(self, now: float) -> list[Ticket]:
        """Pictures whose deadline has passed, or would pass even if the model were theirs alone from now on."""
        return [
            ticket
            for ticket, calls in self._left.values()
            if now + calls * self.pace.seconds(ticket.shape, ticket.rows) * _SURE > ticket.deadline
        ]

    def work_ahead_s(self, priority: int, deadline: float = inf) -> float:
        """How long the pictures that go before a new one of `priority` and `deadline` are expected to take."""
        seconds = 0.0
        for ticket, calls in self._left.values():
            if ticket.priority > priority or (ticket.priority == priority and ticket.deadline <= deadline):
                useful = self._useful_rows(ticket.shape)
                seconds += calls * ticket.rows * self.pace.seconds(ticket.shape, useful) / useful
        return seconds

    def retry_s(self, priority: int) -> float:
        """When to come back to a full queue: half of what is before is done by then."""
        return max(1.0, self.work_ahead_s(priority) / 2)

    def _useful_rows(self, shape: Shape) -> int:
        return self.pace.useful_rows(shape, self.roster.max_rows)

    def _tried_rows(self, shape: Shape) -> int:
        return self.pace.tried_rows(shape, self.roster.max_rows)

    def _free_rows(self, shape: Shape, rows: int) -> int:
        return self.pace.free_rows(shape, rows, self.roster.max_rows)
