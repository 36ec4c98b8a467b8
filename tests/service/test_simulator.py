"""The simulator: the engine's own rules on a virtual clock."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry
from pseudoword.generation.v1 import generation_pb2, resources_pb2

from diffusion.checkpoint import BaseModel
from service.engine.engine import Engine
from service.metrics import EngineMetrics
from service.request.mailbox import Drawn, Mailbox
from service.request.params import validate
from service.request.request import Request
from service.scheduling.cost_model import Shape, StepCostModel
from service.scheduling.scheduler import Scheduler, Work
from service.settings import Defaults, Limits
from service.simulator import Costs, Machine, main, poisson, summary

BASE = (64, 64)
_TABLE = {1: 0.1, 2: 0.1, 4: 0.1, 8: 0.2}


def machine(times: dict[int, float] = _TABLE, costs: Costs = Costs(), **limits: int) -> Machine:  # noqa: B008
    step_costs = StepCostModel(BASE)
    for rows, seconds in times.items():
        step_costs.observe(BASE, rows, seconds)
    return Machine(Scheduler(step_costs, **({"max_pictures": 100, "max_rows": 8} | limits)), costs)


def work(arrived: float = 0.0, **fields: object) -> Work:
    return Work(**({"tenant": "a", "shape": BASE, "rows": 2, "calls": 10, "arrived": arrived} | fields))  # type: ignore[arg-type]


def test_latency_is_the_sum_of_encoding_calls_and_decoding() -> None:
    one = machine(costs=Costs(encode_s=0.5, decode_s=0.25))
    one.run([work(), work(100.0)])
    assert [outcome.latency_s for outcome in one.outcomes] == pytest.approx([1.75, 1.75])
    two = machine()
    two.run([work(), work(), work(0.55)])
    # Two pictures share every call; the third joins at the next step, which makes two calls of up to four rows each.
    assert two.outcomes[0].ended == pytest.approx(two.outcomes[1].ended, abs=0.11)
    assert two.outcomes[2].ended > two.outcomes[0].ended
    assert {call.rows for call in two.calls} == {2, 4}


def test_simulator_refuses_as_the_engine_does() -> None:
    one = machine(max_pictures=2)
    one.run([work(deadline=0.5), work(), work(), work(), work(50.0, deadline=51.5)])
    assert [outcome.refused for outcome in one.outcomes] == ["DEADLINE_TOO_SHORT", "", "", "QUEUE_FULL", ""]
    late = machine()
    late.run([*(work(rows=8) for _ in range(3)), work(rows=8, deadline=2.5)])
    assert [outcome.refused for outcome in late.outcomes][-1] in ("", "DEADLINE_EXCEEDED")
    assert summary([late])["served"] >= 0.75


def test_two_machines_have_a_lower_latency_than_one() -> None:
    trace = list(poisson(rate=1.4, seconds=200.0, shape=BASE, calls=[10, 20], guided=0.5, seed=1))
    one = machine()
    one.run(trace)
    halves = [machine(), machine()]
    for number, half in enumerate(halves):
        half.run(trace[number::2])
    assert summary(halves)["p99_s"] < summary([one])["p99_s"]


def test_command_compares_numbers_of_machines_and_names_invalid_lines(tmp_path: Path) -> None:
    runner = CliRunner()
    assert "seconds_by_rows" in runner.invoke(main, ["--help"]).output
    load = ["--table", "1=0.02,8=0.05", "--rate", "20", "--seconds", "30", "--deadline", "3", "--json"]
    answer = runner.invoke(main, [*load, "--machines", "1,2,8"])
    lines = [json.loads(line) for line in answer.output.splitlines()]
    assert [line["machines"] for line in lines] == [1, 2, 8]
    assert lines[0]["served"] < lines[1]["served"] < lines[2]["served"]
    assert lines[2]["served"] > 0.99
    # Under overload the admitted requests meet their deadlines: no call is wasted.
    assert lines[0]["pictures_a_second"] > 0.6 * 8 / 0.05 / (2 * 20)
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"at": 0, "tenant": "a", "height": 64, "width": 64, "rows": 2, "calls": 3}\n{"at": "x"}\n')
    wrong = runner.invoke(main, ["--table", "1=0.02", "--trace", str(trace)])
    assert wrong.exit_code == 1
    assert "line 2" in wrong.output
    trace.write_text(trace.read_text().splitlines()[0] + "\n")
    right = runner.invoke(main, ["--table", "2=0.02", "--trace", str(trace), "--json"])
    assert json.loads(right.output)["p50_s"] == pytest.approx(0.06)


class RecordingScheduler(Scheduler):
    """A scheduler that records its groups."""

    def __init__(self, costs: StepCostModel, **limits: Any) -> None:
        super().__init__(costs, **limits)
        self.groups: list[list[int]] = []

    def next_group(self, now: float) -> list[int]:
        group = super().next_group(now)
        if group:
            self.groups.append(group)
        return group


class WarmUpOnly(StepCostModel):
    """A cost model that learns nothing after the warm-up, so that the simulator can be given the same table."""

    def observe(self, shape: Shape, rows: int, seconds: float) -> None:
        if rows in (1, 2, 4, 8, 16) and rows not in self.table(shape):
            super().observe(shape, rows, seconds)


@pytest.mark.compute
async def test_simulated_calls_equal_those_of_the_real_engine(model: BaseModel) -> None:
    """One trace runs through the real engine, and through the simulator with the table that the engine measured. Calls,
    their pictures and the order in which pictures end are equal."""
    limits: dict[str, Any] = {"max_pictures": 100, "max_rows": 16, "aging_s": 1e9}
    costs = WarmUpOnly(BASE)
    scheduler = RecordingScheduler(costs, **limits)
    engine = Engine(model, scheduler, EngineMetrics(CollectorRegistry()))
    draw = np.random.default_rng(5)
    requests: list[Request] = []
    ended: list[int] = []

    async def finished(number: int, mailbox: Mailbox) -> None:
        async for event in mailbox.events():
            if isinstance(event, Drawn):
                ended.append(number)
                return

    for number in range(30):
        asked = generation_pb2.GenerateRequest(
            parent=f"tenants/{'abc'[number % 3]}",
            settings=resources_pb2.PictureSettings(
                prompt="a dog", seed=number, steps=int(draw.integers(3, 12)), guidance_scale=[1.0, 4.0][number % 2]
            ),
            priority=int(draw.integers(-1, 2)),
        )
        params = validate(asked, model.spec, Defaults(), Limits())
        mailbox = Mailbox(asyncio.get_running_loop())
        requests.append(Request(params=params, vectors={}, mailbox=mailbox, arrived=0.0))
    for request in requests:
        engine.submit(request)  # before the engine starts, so that the first call sees all requests
    await asyncio.to_thread(engine.start)
    await asyncio.gather(*(finished(number, request.mailbox) for number, request in enumerate(requests)))
    await asyncio.to_thread(engine.stop)

    simulated = Machine(Scheduler(costs, **limits), Costs())
    simulated.run([request.work for request in requests])
    assert [list(call.ids) for call in simulated.calls] == scheduler.groups
    times = [outcome.ended for outcome in simulated.outcomes]
    assert [times[number] for number in ended] == sorted(times)
