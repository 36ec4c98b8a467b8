"""`python -m service.simulator` simulates how a number of machines would serve a load.

The scheduler is the engine's own, the clock is virtual, and the time of a denoiser call is taken from a table. Pure
except for the command line at the end.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import inf, nan
from pathlib import Path
from typing import Any

import click
import numpy as np

from service.scheduling.cost_model import Shape, StepCostModel
from service.scheduling.scheduler import Full, Overloaded, Scheduler, TooLate, Work
from service.settings import Limits


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Time that the engine's thread spends outside denoiser calls, in seconds: to encode a request, to decode a
    picture."""

    encode_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a request; times are on the trace's clock. `refused` is the reason of a refusal, or empty. `ended`
    is when its last picture was finished; infinite if it was refused or dropped."""

    work: Work
    refused: str = ""
    started: float = inf
    ended: float = inf

    @property
    def latency_s(self) -> float:
        return self.ended - self.work.arrived


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of the denoiser."""

    ids: Sequence[int]
    rows: int
    seconds: float


class Machine:
    """One engine on a virtual clock. Requests are numbered in order of arrival, pictures in order of entry."""

    def __init__(self, scheduler: Scheduler, costs: Costs) -> None:
        self._scheduler = scheduler
        self._costs = costs
        self._ids = count()
        self._owner: dict[int, int] = {}  # pictures in flight, and the number of their request
        self._calls_left: dict[int, int] = {}
        self._entering: list[int] = []
        self.outcomes: list[Outcome] = []
        self.calls: list[Call] = []
        self.ended = 0.0  # end of its last call

    def run(self, trace: Sequence[Work]) -> None:
        """Serves all requests of `trace`, which must be in order of arrival."""
        coming = list(trace)[::-1]
        now = 0.0
        while coming or self._owner or self._entering:
            if not self._owner and not self._entering:
                now = max(now, coming[-1].arrived)
            self._admit(coming, now)
            now = self._enter(now)
            self._drop(now)
            group = self._scheduler.next_group(now)
            if group:
                now = self.ended = self._tick(group, coming, now)

    def _admit(self, coming: list[Work], until: float) -> None:
        """Admits or refuses the requests that arrive up to `until`. In the server this runs on other threads,
        concurrently with the calls."""
        while coming and coming[-1].arrived <= until:
            work = coming.pop()
            outcome = Outcome(work=work)
            try:
                self._scheduler.admit(work, work.arrived)
                self._entering.append(len(self.outcomes))
            except TooLate:
                outcome = replace(outcome, refused="DEADLINE_TOO_SHORT")
            except Overloaded:
                outcome = replace(outcome, refused="OVERLOADED")
            except Full as full:
                outcome = replace(outcome, refused="TENANT_QUEUE_FULL" if full.tenant else "QUEUE_FULL")
            self.outcomes.append(outcome)

    def _enter(self, now: float) -> float:
        for number in self._entering:
            now += self._costs.encode_s
            work = self.outcomes[number].work
            ids = [next(self._ids) for _ in range(work.pictures)]
            self._scheduler.enter(work, ids)
            self._owner |= dict.fromkeys(ids, number)
            self._calls_left |= dict.fromkeys(ids, work.calls)
        self._entering.clear()
        return now

    def _drop(self, now: float) -> None:
        late = {self._owner[id] for id in self._scheduler.hopeless(now)}
        for id in [id for id, number in self._owner.items() if number in late]:
            self._leave(id)
        for number in late:
            self.outcomes[number] = replace(self.outcomes[number], refused="DEADLINE_EXCEEDED")

    def _tick(self, ids: Sequence[int], coming: list[Work], now: float) -> float:
        works = [self.outcomes[self._owner[id]].work for id in ids]
        rows = sum(work.rows for work in works)
        seconds = self._scheduler.costs.seconds(works[0].shape, rows)
        self.calls.append(Call(ids=ids, rows=rows, seconds=seconds))
        for id in ids:
            number = self._owner[id]
            if self.outcomes[number].started == inf:
                self.outcomes[number] = replace(self.outcomes[number], started=now)
        now += seconds
        self._admit(coming, now)
        self._scheduler.stepped(ids)
        for id in ids:
            self._calls_left[id] -= 1
        done = [id for id in ids if not self._calls_left[id]]
        now += self._costs.decode_s * len(done)
        for id in done:
            number = self._owner[id]
            self._leave(id)
            if number not in self._owner.values():
                self.outcomes[number] = replace(self.outcomes[number], ended=now)
        return now

    def _leave(self, id: int) -> None:
        self._scheduler.leave(id)
        del self._owner[id], self._calls_left[id]


def poisson(
    *, rate: float, seconds: float, shape: Shape, calls: Sequence[int], guided: float, seed: int
) -> Iterator[Work]:
    """Poisson arrivals, `rate` a second for `seconds`, of requests for one picture; a share `guided` of them has two
    rows."""
    draw = np.random.default_rng(seed)
    now = float(draw.exponential(1 / rate))
    while now < seconds:
        tenant = f"t{draw.integers(8)}"
        rows = 2 if draw.random() < guided else 1
        yield Work(tenant=tenant, shape=shape, rows=rows, calls=int(draw.choice(calls)), arrived=now)
        now += float(draw.exponential(1 / rate))


def read_trace(path: Path) -> list[Work]:
    """Reads requests from a file with one JSON object in each line: `at` (seconds), `tenant`, `height`, `width`,
    `rows`, `calls`, and optionally `pictures` (default 1), `priority` (0), `exact` (false) and `deadline_s` (seconds
    from its arrival; none). Raises ValueError naming the line."""
    works = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            fields = json.loads(line)
            at, within = float(fields.pop("at")), float(fields.pop("deadline_s", inf))
            shape = (int(fields.pop("height")), int(fields.pop("width")))
            works.append(Work(shape=shape, arrived=at, deadline=at + within, **fields))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"line {number}: {error}") from None
    return sorted(works, key=lambda work: work.arrived)


def summary(machines: Sequence[Machine]) -> dict[str, float]:
    """The result of a load: latencies of the served requests in seconds, throughput in pictures a second."""
    outcomes = [outcome for machine in machines for outcome in machine.outcomes]
    calls = [call for machine in machines for call in machine.calls]
    served = [outcome for outcome in outcomes if outcome.ended < inf]
    latencies = [outcome.latency_s for outcome in served]
    last = max(machine.ended for machine in machines) or nan
    p50, p95, p99 = np.percentile(latencies, (50, 95, 99)) if latencies else (nan, nan, nan)
    busy = sum(call.seconds for call in calls) / (last * len(machines))
    return {
        "machines": len(machines),
        "requests": len(outcomes),
        "served": len(served) / max(1, len(outcomes)),
        "p50_s": float(p50),
        "p95_s": float(p95),
        "p99_s": float(p99),
        "pictures_a_second": sum(outcome.work.pictures for outcome in served) / last,
        "rows_a_call": sum(call.rows for call in calls) / max(1, len(calls)),
        "busy": busy,
    }


def fleet(trace: Sequence[Work], machines: int, times: dict[int, float], limits: Limits, costs: Costs) -> list[Machine]:
    """Runs `machines` equal machines, each with every `machines`-th request: clients spread calls round robin."""
    shape = trace[0].shape if trace else (64, 64)
    fleet = []
    for number in range(machines):
        step_costs = StepCostModel(shape)
        for rows, seconds in times.items():
            step_costs.observe(shape, rows, seconds)
        scheduler = Scheduler(
            step_costs,
            max_pictures=limits.max_pictures,
            max_pictures_a_tenant=limits.max_pictures_a_tenant,
            max_rows=limits.max_rows,
            aging_s=limits.aging.total_seconds(),
        )
        machine = Machine(scheduler, costs)
        machine.run(trace[number::machines])
        fleet.append(machine)
    return fleet


def _times(context: click.Context, parameter: click.Parameter, value: str) -> dict[int, float]:
    try:
        pairs = [pair.split("=") for pair in value.split(",")]
        return {int(rows): float(seconds) for rows, seconds in pairs}
    except ValueError:
        raise click.BadParameter("must be ROWS=SECONDS,ROWS=SECONDS,...") from None


def _numbers(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    try:
        return [int(number) for number in value.split(",")]
    except ValueError:
        raise click.BadParameter("must be whole numbers, separated by commas") from None


@click.command()
@click.option(
    "--table",
    "times",
    required=True,
    callback=_times,
    metavar="ROWS=SECONDS,...",
    help="Time of a denoiser call. A server logs its own as seconds_by_rows when its model is warm.",
)
@click.option(
    "--machines",
    default="1",
    callback=_numbers,
    metavar="N,N,...",
    help="Numbers of machines, each simulated by itself.",
)
@click.option(
    "--trace", "path", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Trace in JSON lines."
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=10.0, help="Requests a second.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=600.0, help="Duration of the arrivals.")
@click.option(
    "--calls",
    default="20",
    callback=_numbers,
    metavar="N,N,...",
    help="Calls of a picture; each request takes one of these at random.",
)
@click.option("--guided", type=click.FloatRange(0, 1), default=1.0, help="Share of requests with guidance: two rows.")
@click.option(
    "--deadline",
    type=click.FloatRange(min=1),
    help="Deadline of each request, as a multiple of its solo time.  [default: none]",
)
@click.option("--encode", type=click.FloatRange(0), default=0.0, help="Seconds to encode a request's prompts.")
@click.option("--decode", type=click.FloatRange(0), default=0.0, help="Seconds to decode a picture.")
@click.option(
    "--max-pictures", type=click.IntRange(1), default=Limits().max_pictures, help="The server's limits.max-pictures."
)
@click.option("--max-rows", type=click.IntRange(1), default=Limits().max_rows, help="The server's limits.max-rows.")
@click.option("--seed", default=0, help="Seed of the arrivals.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each number of machines.")
def main(
    *,
    times: dict[int, float],
    machines: list[int],
    path: Path | None,
    rate: float,
    seconds: float,
    calls: list[int],
    guided: float,
    deadline: float | None,
    encode: float,
    decode: float,
    max_pictures: int,
    max_rows: int,
    seed: int,
    as_json: bool,
) -> None:
    """Plan capacity: simulate how a number of machines would serve a load.

    Runs the engine's own rules of admission, fairness and batching on a virtual clock, over Poisson arrivals or a
    trace. Hours of load take seconds to simulate.

    \b
    python -m service.simulator --table 1=0.02,8=0.05,32=0.16 --rate 40 --calls 20,30 --machines 4,6,8 --deadline 3

    A trace has one JSON object in each line:
    {"at": 0.5, "tenant": "shop", "height": 512, "width": 512, "rows": 2, "calls": 20, "deadline_s": 10}

    `served` is the share of requests that were neither refused nor dropped, `busy` the share of time spent in calls.
    """
    try:
        trace = (
            list(poisson(rate=rate, seconds=seconds, shape=(64, 64), calls=calls, guided=guided, seed=seed))
            if path is None
            else read_trace(path)
        )
    except ValueError as error:
        raise click.ClickException(f"{path}: {error}") from None
    limits = Limits(max_pictures=max_pictures, max_pictures_a_tenant=max_pictures, max_rows=max_rows)
    costs = Costs(encode_s=encode, decode_s=decode)
    if deadline is not None:
        alone = fleet(trace[:1], 1, times, limits, costs)[0]._scheduler
        trace = [
            replace(work, deadline=work.arrived + deadline * (alone.solo_s(work) + encode + decode)) for work in trace
        ]
    for number in machines:
        figures = summary(fleet(trace, number, times, limits, costs))
        if as_json:
            click.echo(json.dumps(figures))
        else:
            click.echo("  ".join(f"{name} {_formatted(value)}" for name, value in figures.items()))


def _formatted(value: Any) -> str:
    return f"{value}" if isinstance(value, int) else f"{value:.3g}"


if __name__ == "__main__":
    main()
