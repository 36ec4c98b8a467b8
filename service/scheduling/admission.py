"""Who is let in, and who runs next. Pure: no torch, no grpc, the time handed in.

The unit is a picture. Between tenants the share is by rows of the denoiser (start-time fair queueing, Goyal et al.
1996); within a tenant the earliest deadline is first; priorities go before both, and waiting raises a picture's
priority, so that nothing starves. What has a priority below 0 is in the background: it has calls for itself where
nobody else wants one, and joins others' calls only where that costs them next to nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf

from service.scheduling.cost_model import Shape


class Full(Exception):
    """There is no place: `waiting` pictures are here already, of all tenants or of `tenant`, and the limit is
    `limit`."""

    def __init__(self, waiting: int, limit: int, tenant: str = "") -> None:
        whose = f" of tenants/{tenant}" if tenant else ""
        super().__init__(f"{waiting} pictures{whose} are waiting or being drawn; the limit is {limit}")
        self.waiting = waiting
        self.limit = limit
        self.tenant = tenant


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

    def __init__(
        self, *, max_pictures: int, max_rows: int, aging_s: float = 10.0, max_pictures_a_tenant: int | None = None
    ) -> None:
        """At most `max_pictures` at once, `max_rows` in one call; `aging_s` without a step is worth one priority."""
        self.max_rows = max_rows
        self._max_pictures = max_pictures
        self._max_pictures_a_tenant = max_pictures if max_pictures_a_tenant is None else max_pictures_a_tenant
        # Places of pictures that were let in and are not here yet, and of those that are, per tenant.
        self._reserved: Counter[str] = Counter()
        self._present: Counter[str] = Counter()
        self._aging_s = aging_s
        self._tickets: dict[int, Ticket] = {}
        self._served_at: dict[int, float] = {}
        # Rows served so far, per tenant with pictures here.
        self._served_rows: dict[str, float] = {}

    def __len__(self) -> int:
        """Pictures here, and those that a place is kept for."""
        return len(self._tickets) + self._reserved.total()

    def reserve(self, tenant: str, pictures: int) -> None:
        """Keeps places for pictures on their way; raises Full."""
        if len(self) + pictures > self._max_pictures:
            raise Full(len(self), self._max_pictures)
        own = self._present[tenant] + self._reserved[tenant]
        if own + pictures > self._max_pictures_a_tenant:
            raise Full(own, self._max_pictures_a_tenant, tenant)
        self._reserved[tenant] += pictures

    def release(self, tenant: str, pictures: int) -> None:
        """Gives places back that were kept."""
        self._reserved[tenant] -= pictures
        if not self._reserved[tenant]:
            del self._reserved[tenant]

    def admit(self, ticket: Ticket) -> None:
        """Takes a picture in, for which there is a place."""
        if ticket.tenant not in self._served_rows:
            # A tenant that comes back starts level with the one served least: idleness is not saved up.
            self._served_rows[ticket.tenant] = min(self._served_rows.values(), default=0.0)
        self._tickets[ticket.id] = ticket
        self._served_at[ticket.id] = ticket.arrived
        self._present[ticket.tenant] += 1

    def leave(self, ticket_id: int) -> None:
        """Frees a picture's place; nothing happens when it has none."""
        ticket = self._tickets.pop(ticket_id, None)
        if ticket is None:
            return
        del self._served_at[ticket_id]
        self._present[ticket.tenant] -= 1
        if not self._present[ticket.tenant]:
            del self._present[ticket.tenant], self._served_rows[ticket.tenant]

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
