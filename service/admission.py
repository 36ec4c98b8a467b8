"""Who is let in, and who runs next. Pure: no torch, no grpc, the time handed in.

The unit is a picture. Between tenants the share is by rows of the denoiser (start-time fair queueing, Goyal et al.
1996); within a tenant the earliest deadline is first; priorities go before both, and waiting raises a picture's
priority, so that nothing starves. What has a priority below 0 is in the background: it has calls for itself where
nobody else wants one, and joins others' calls only where that costs them next to nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf

from service.pace import Shape


class Full(Exception):
    """There is no place: `waiting` pictures are here already, and the limit is `limit`."""

    def __init__(self, waiting: int, limit: int) -> None:
        super().__init__(f"{waiting} pictures are waiting or being drawn; the limit is {limit}")
        self.waiting = waiting
        self.limit = limit


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A picture that waits or is being drawn.

    `rows` is what a call of the denoiser computes for it: 2 with guidance, 1 without. Only pictures of one `shape`
    share a call, and an `exact` one has its calls for itself. `deadline` and `arrived` are on the clock of `now`, in
    seconds.
    """

    id: int
    tenant: str
    shape: Shape
    rows: int
    exact: bool = False
    priority: int = 0
    deadline: float = inf
    arrived: float = 0.0

    @property
    def background(self) -> bool:
        return self.priority < 0


class Roster:
    """The pictures in flight, and the choice of those that make the next call of the denoiser."""

    def __init__(self, *, max_pictures: int, max_rows: int, aging_s: float = 10.0) -> None:
        """At most `max_pictures` at once, `max_rows` in one call; `aging_s` without a step is worth one priority."""
        self.max_rows = max_rows
        self._max_pictures = max_pictures
        self._aging_s = aging_s
        self._tickets: dict[int, Ticket] = {}
        self._served_at: dict[int, float] = {}
        # Rows served so far, per tenant with pictures here.
        self._served_rows: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._tickets)

    def check_room(self, pictures: int) -> None:
        """Raises Full when `pictures` more do not fit."""
        if len(self._tickets) + pictures > self._max_pictures:
            raise Full(len(self._tickets), self._max_pictures)

    def admit(self, ticket: Ticket) -> None:
        """Takes a picture in; raises Full."""
        self.check_room(1)
        if ticket.tenant not in self._served_rows:
            # A tenant that comes back starts level with the one served least: idleness is not saved up.
            self._served_rows[ticket.tenant] = min(self._served_rows.values(), default=0.0)
        self._tickets[ticket.id] = ticket
        self._served_at[ticket.id] = ticket.arrived

    def leave(self, ticket_id: int) -> None:
        """Frees a picture's place; nothing happens when it has none."""
        ticket = self._tickets.pop(ticket_id, None)
        if ticket is None:
            return
        del self._served_at[ticket_id]
        if all(other.tenant != ticket.tenant for other in self._tickets.values()):
            del self._served_rows[ticket.tenant]

    def expired(self, now: float) -> list[Ticket]:
        """Pictures whose deadline has passed."""
        return [ticket for ticket in self._tickets.values() if ticket.deadline <= now]

    def next_group(
        self,
        now: float,
        useful_rows: Callable[[Shape], int] | None = None,
        free_rows: Callable[[Shape, int], int] | None = None,
    ) -> list[Ticket]:
        """Chooses the pictures of the next call and books it to their tenants. Empty only when nothing is in flight.

        All are of one shape, together at most `max_rows` rows and at most what `useful_rows` says of the shape (one
        picture may exceed both alone); an exact one is alone. Where the call is somebody's who is not in the
        background, those who are make it no larger than `free_rows` of shape and rows.
        """
        if not self._tickets:
            return []
        lead = self._take(self._tickets.values(), now)
        group, rows = [lead], lead.rows
        limit = self.max_rows if useful_rows is None else min(self.max_rows, useful_rows(lead.shape))
        joining = set() if lead.exact else {ticket for ticket in self._tickets.values() if _can_join(ticket, lead)}
        behind = {ticket for ticket in joining if ticket.background and not lead.background}
        for some in (joining - behind, behind):
            if some is behind and free_rows is not None:
                limit = min(limit, free_rows(lead.shape, rows))
            while some := {ticket for ticket in some if rows + ticket.rows <= limit}:
                ticket = self._take(some, now)
                some.remove(ticket)
                group.append(ticket)
                rows += ticket.rows
        for ticket in group:
            self._served_at[ticket.id] = now
        return group

    def _take(self, tickets: Iterable[Ticket], now: float) -> Ticket:
        """The one of `tickets` who is next; its rows are booked to its tenant, which matters to who is next after."""
        ticket = min(tickets, key=lambda ticket: self._order(ticket, now))
        self._served_rows[ticket.tenant] += ticket.rows
        return ticket

    def _order(self, ticket: Ticket, now: float) -> tuple[float, float, float, float, int]:
        aged = ticket.priority + int((now - self._served_at[ticket.id]) / self._aging_s)
        return (-aged, self._served_rows[ticket.tenant], ticket.deadline, ticket.arrived, ticket.id)


def _can_join(ticket: Ticket, lead: Ticket) -> bool:
    return ticket.id != lead.id and ticket.shape == lead.shape and not ticket.exact
