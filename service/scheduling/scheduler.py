"""Admits work and chooses the pictures of each call. The engine and the simulator use the same code. Pure: no torch, no
gRPC, the time is passed in.

The unit is a picture. Tenants share the denoiser's rows fairly (start-time fair queueing, Goyal et al. 1996); within a
tenant the earliest deadline is first. Priorities take precedence over both, and waiting raises a picture's priority, so
no picture starves. A picture with a priority below 0 is background work: it gets its own calls only while no other
picture waits, and joins other calls only if that makes them hardly longer.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from service.scheduling.cost_model import Shape, StepCostModel

# A call takes at least this fraction of its expected time.
_MIN_TIME_FRACTION = 0.7


class Full(Exception):
    """The queue has `waiting` of at most `limit` pictures, of all tenants or of `tenant`."""

    def __init__(self, waiting: int, limit: int, tenant: str = "") -> None:
        whose = f" of tenants/{tenant}" if tenant else ""
        super().__init__(f"{waiting} pictures{whose} are waiting or being drawn; the limit is {limit}")
        self.waiting = waiting
        self.limit = limit
        self.tenant = tenant


class TooLate(Exception):
    """The work needs `needed_s` alone on the model, and its deadline is in `left_s`."""

    def __init__(self, needed_s: float, left_s: float) -> None:
        super().__init__(
            f"drawing this takes about {needed_s:.2f} s, and the deadline is in {left_s:.2f} s: "
            "allow more time, or request fewer steps or pictures"
        )
        self.needed_s = needed_s
        self.left_s = left_s


class Overloaded(Exception):
    """After the work that is ahead of it, the work would end about `late_s` after its deadline."""

    def __init__(self, late_s: float) -> None:
        super().__init__(
            f"after the work that is ahead of it, drawing this would end about {late_s:.2f} s after its deadline"
        )
        self.late_s = late_s


@dataclass(frozen=True, kw_only=True)
class Work:
    """The cost of a request: `pictures`, each of `rows` rows (2 with guidance, 1 without) in each of `calls` calls.

    Only pictures of one `shape` share a call, and an `exact` one has calls of its own. `deadline` and `arrived` are
    seconds on the clock of `now`.
    """

    tenant: str
    shape: Shape
    rows: int
    calls: int
    pictures: int = 1
    exact: bool = False
    priority: int = 0
    deadline: float = inf
    arrived: float = 0.0

    @property
    def background(self) -> bool:
        return self.priority < 0


@dataclass(kw_only=True)
class _Picture:
    """A picture in flight: its work, the calls it still needs, and when it was last in a call (at first: its
    arrival)."""

    id: int
    work: Work
    calls_left: int
    served_at: float

    @property
    def rows(self) -> int:
        return self.work.rows


class Scheduler:
    """The pictures in flight, and the choice of those in the next call of the denoiser."""

    def __init__(
        self,
        costs: StepCostModel,
        *,
        max_pictures: int,
        max_rows: int,
        aging_s: float = 10.0,
        max_pictures_a_tenant: int | None = None,
    ) -> None:
        """At most `max_pictures` are in flight, and `max_rows` in one call; each `aging_s` without a step raises a
        picture's priority by one."""
        self.costs = costs
        self.max_rows = max_rows
        self._max_pictures = max_pictures
        self._max_pictures_a_tenant = max_pictures if max_pictures_a_tenant is None else max_pictures_a_tenant
        self._aging_s = aging_s
        # By tenant: admitted pictures that have not entered yet, and pictures that have.
        self._reserved: Counter[str] = Counter()
        self._present: Counter[str] = Counter()
        self._pictures: dict[int, _Picture] = {}
        # Rows served so far, for each tenant with pictures in flight.
        self._served_rows: dict[str, float] = {}

    def __len__(self) -> int:
        """Number of pictures in flight, including admitted ones that have not entered yet."""
        return len(self._pictures) + self._reserved.total()

    def admit(self, work: Work, now: float) -> None:
        """Reserves places for `work`, which enter() takes or release() frees. Raises TooLate, Overloaded, Full.

        Without Overloaded, all requests of an overlong queue would share the model, and none would meet its deadline.
        """
        needed_s, left_s = self.solo_s(work), max(0.0, work.deadline - now)
        if needed_s > left_s:
            raise TooLate(needed_s, left_s)
        late_s = self.work_ahead_s(work.priority, work.deadline) + needed_s - left_s
        if work.deadline < inf and late_s > 0:
            raise Overloaded(late_s)
        if len(self) + work.pictures > self._max_pictures:
            raise Full(len(self), self._max_pictures)
        own = self._present[work.tenant] + self._reserved[work.tenant]
        if own + work.pictures > self._max_pictures_a_tenant:
            raise Full(own, self._max_pictures_a_tenant, work.tenant)
        self._reserved[work.tenant] += work.pictures

    def release(self, work: Work) -> None:
        """Frees the places that admit() reserved."""
        self._reserved[work.tenant] -= work.pictures
        if not self._reserved[work.tenant]:
            del self._reserved[work.tenant]

    def enter(self, work: Work, ids: Sequence[int]) -> None:
        """Adds the pictures of `work`, which take the reserved places."""
        self.release(work)
        for id in ids:
            if work.tenant not in self._served_rows:
                # A returning tenant starts level with the least served one: idle time earns no credit.
                self._served_rows[work.tenant] = min(self._served_rows.values(), default=0.0)
            self._pictures[id] = _Picture(id=id, work=work, calls_left=work.calls, served_at=work.arrived)
            self._present[work.tenant] += 1

    def leave(self, id: int) -> None:
        """Frees the place of a picture that is finished or cancelled; an unknown `id` is ignored."""
        picture = self._pictures.pop(id, None)
        if picture is None:
            return
        tenant = picture.work.tenant
        self._present[tenant] -= 1
        if not self._present[tenant]:
            del self._present[tenant], self._served_rows[tenant]

    def next_group(self, now: float) -> list[int]:
        """Chooses the pictures of the next call and charges their rows to their tenants. Empty only if no picture is in
        flight.

        All have one shape. Their rows are at most `max_rows` and at most the cost model's useful number; a single
        picture may exceed both. An exact picture is alone. Background pictures join a foreground call only if that is
        nearly free.
        """
        if not self._pictures:
            return []
        lead = self._take(self._pictures.values(), now)
        shape = lead.work.shape
        group, rows = [lead], lead.rows
        limit = min(self.max_rows, self.costs.tried_rows(shape, self.max_rows))
        joining = [] if lead.work.exact else [one for one in self._pictures.values() if _can_join(one, lead)]
        background = [one for one in joining if one.work.background and not lead.work.background]
        foreground = [one for one in joining if not (one.work.background and not lead.work.background)]
        for some in (foreground, background):
            if some is background:
                limit = min(limit, self.costs.free_rows(shape, rows, self.max_rows))
            while some := [one for one in some if rows + one.rows <= limit]:
                picture = self._take(some, now)
                some.remove(picture)
                group.append(picture)
                rows += picture.rows
        for picture in group:
            picture.served_at = now
        return [picture.id for picture in group]

    def stepped(self, ids: Sequence[int]) -> None:
        """Records that one call was made for these pictures."""
        for id in ids:
            self._pictures[id].calls_left -= 1

    def hopeless(self, now: float) -> list[int]:
        """Pictures whose deadline has passed, or would pass even if they had the model to themselves from now on."""
        return [
            picture.id
            for picture in self._pictures.values()
            if now + picture.calls_left * self.costs.seconds(picture.work.shape, picture.rows) * _MIN_TIME_FRACTION
            > picture.work.deadline
        ]

    def solo_s(self, work: Work) -> float:
        """Expected seconds of `work` alone on the model, without decoding."""
        return self.costs.solo_s(
            work.shape, pictures=work.pictures, rows=work.rows, calls=work.calls, limit=self.max_rows
        )

    def work_ahead_s(self, priority: int, deadline: float = inf) -> float:
        """Expected seconds of the pictures that are ahead of a new one of `priority` and `deadline`."""
        seconds = 0.0
        for picture in self._pictures.values():
            work = picture.work
            if work.priority > priority or (work.priority == priority and work.deadline <= deadline):
                useful = self.costs.useful_rows(work.shape, self.max_rows)
                seconds += picture.calls_left * work.rows * self.costs.seconds(work.shape, useful) / useful
        return seconds

    def retry_s(self, priority: int) -> float:
        """Retry delay for a full queue, in seconds: by then about half of the work ahead is done."""
        return max(1.0, self.work_ahead_s(priority) / 2)

    def _take(self, pictures: Iterable[_Picture], now: float) -> _Picture:
        """Chooses the first of `pictures` and charges its rows to its tenant, which affects the next choice."""
        picture = min(pictures, key=lambda picture: self._order(picture, now))
        self._served_rows[picture.work.tenant] += picture.rows
        return picture

    def _order(self, picture: _Picture, now: float) -> tuple[float, float, float, float, int]:
        work = picture.work
        aged = work.priority + int((now - picture.served_at) / self._aging_s)
        return (-aged, self._served_rows[work.tenant], work.deadline, work.arrived, picture.id)


def _can_join(picture: _Picture, lead: _Picture) -> bool:
    return picture.id != lead.id and picture.work.shape == lead.work.shape and not picture.work.exact
