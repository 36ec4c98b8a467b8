"""The engine without a server: freed places, cached prompts and words, slow readers."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from pseudoword.generation.v1 import generation_pb2, resources_pb2
from pseudoword.names import WordRef

from diffusion.checkpoint import BaseModel
from diffusion.encoder import PromptEncoder
from diffusion.prompt import Prompt
from rpc.errors import Cancelled, DeadlineExceeded, ResourceExhausted
from service.engine.engine import Engine
from service.metrics import EngineMetrics
from service.request.mailbox import Drawn, Event, Failed, Mailbox, Previewed, Stepped
from service.request.params import validate
from service.request.request import Request
from service.scheduling.cost_model import StepCostModel
from service.scheduling.scheduler import Scheduler
from service.settings import Defaults, Limits
from service.words.tensor_cache import TensorCache


class RecordingScheduler(Scheduler):
    """A scheduler that records the pictures of each call."""

    def __init__(self) -> None:
        super().__init__(StepCostModel((64, 64)), max_pictures=50, max_rows=8)
        self.calls: list[set[int]] = []

    def next_group(self, now: float) -> list[int]:
        group = super().next_group(now)
        if group:
            self.calls.append(set(group))
        return group


@pytest.fixture
async def running(model: BaseModel) -> AsyncIterator[tuple[Engine, RecordingScheduler]]:
    scheduler = RecordingScheduler()
    engine = Engine(model, scheduler, EngineMetrics(CollectorRegistry()))
    await asyncio.to_thread(engine.start)
    yield engine, scheduler
    await asyncio.to_thread(engine.stop)


def request(model: BaseModel, steps: int, *, prompt: str = "a dog", **how: Any) -> Request:
    settings = resources_pb2.PictureSettings(prompt=prompt, steps=steps, seed=1)
    asked = generation_pb2.GenerateRequest(parent="tenants/a", settings=settings, preview_every=how.pop("preview", 0))
    params = validate(asked, model.spec, Defaults(), Limits(max_steps=1000))
    how.setdefault("vectors", {})
    return Request(params=params, mailbox=Mailbox(asyncio.get_running_loop()), **how)


async def test_cancelled_picture_leaves_the_engine_within_two_calls(
    model: BaseModel, running: tuple[Engine, RecordingScheduler]
) -> None:
    engine, scheduler = running
    gone, stays = request(model, 150), request(model, 30)
    engine.submit(gone)
    engine.submit(stays)
    made = 0
    with pytest.raises(Cancelled):
        async for event in gone.mailbox.events():
            if isinstance(event, Stepped) and not gone.cancelled.is_set():
                made = event.call
                gone.cancelled.set()
    # One call may be finished before its event arrives here, and another call may be running.
    assert gone.calls_made <= made + 2
    async for event in stays.mailbox.events():
        if isinstance(event, Drawn):
            break
    assert engine.waiting() == 0
    assert sum(0 in ids for ids in scheduler.calls) == gone.calls_made


async def test_deadline_that_only_the_queue_prevents_is_resource_exhausted(model: BaseModel) -> None:
    """Alone the request would meet its deadline, after the requests before it it would not."""
    costs = StepCostModel((64, 64))
    costs.observe((64, 64), 2, 0.1)
    engine = Engine(model, Scheduler(costs, max_pictures=3, max_rows=2), EngineMetrics(CollectorRegistry()))
    now = time.monotonic()
    before, behind = request(model, 100, deadline=now + 60), request(model, 100, deadline=now + 61)
    engine.submit(before)
    engine._scheduler.enter(before.work, [0])  # the engine is not started, so it draws nothing
    engine.submit(request(model, 100, deadline=now + 90))
    with pytest.raises(ResourceExhausted) as overload:
        engine.submit(request(model, 590, deadline=now + 61))
    assert overload.value.reason == "DEADLINE_OUT_OF_REACH"
    assert overload.value.retry_after is not None
    engine.submit(behind)
    with pytest.raises(ResourceExhausted) as full:
        engine.submit(request(model, 1))
    assert (full.value.reason, full.value.metadata) == ("QUEUE_FULL", {"limit": "3"})
    with pytest.raises(DeadlineExceeded) as late:
        engine.submit(request(model, 100, deadline=now + 5))
    assert late.value.reason == "DEADLINE_TOO_SHORT"
    assert late.value.retry_after is None


async def test_mailbox_without_a_reader_keeps_the_newest_events_only(
    model: BaseModel, running: tuple[Engine, RecordingScheduler]
) -> None:
    """The first mailbox has no reader: it keeps the newest step and preview only, and delays no other request."""
    engine, _ = running
    slow, quick = request(model, 10, preview=1), request(model, 10)
    engine.submit(slow)
    engine.submit(quick)
    async for event in quick.mailbox.events():
        if isinstance(event, Drawn):
            break
    await asyncio.to_thread(engine.stop)  # both are drawn in the same calls
    await asyncio.sleep(0)
    kept: list[Event] = list(slow.mailbox._events)
    assert len(kept) <= 4
    assert [event.call for event in kept if isinstance(event, Stepped)] == [10]
    assert [event.call for event in kept if isinstance(event, Previewed)] == [9]
    assert any(isinstance(event, Drawn) for event in kept)
    assert not any(isinstance(event, Failed) for event in kept)


async def test_encoded_prompts_are_reused_while_the_word_has_the_same_digest(
    model: BaseModel, running: tuple[Engine, RecordingScheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = running
    encoded: list[Prompt] = []
    encode = PromptEncoder.encode

    def counted(self: PromptEncoder, prompts: Sequence[Prompt], *arguments: Any, **named: Any) -> torch.Tensor:
        encoded.extend(prompts)
        return encode(self, prompts, *arguments, **named)

    monkeypatch.setattr(PromptEncoder, "encode", counted)
    rex = WordRef(None, "rex")

    async def drawn(seed: int, digest: str) -> bytes:
        generator = torch.Generator().manual_seed(seed)
        vectors = {rex: torch.randn(1, model.spec.encoders[0].dims, generator=generator) * 0.1}
        digests = {rex: digest} if digest else {}
        asked = request(model, 2, prompt="a <rex>", vectors=vectors, digests=digests)
        engine.submit(asked)
        async for event in asked.mailbox.events():
            if isinstance(event, Drawn):
                return event.pixels.tobytes()
        raise AssertionError

    one = await drawn(1, "one")
    assert await drawn(1, "one") == one
    assert len(encoded) == 2  # the prompt and the empty prompt
    assert await drawn(2, "two") != one
    assert len(encoded) == 3
    for _ in range(2):  # a word without a digest is not cached
        assert await drawn(2, "") != one
    assert len(encoded) == 5


def test_tensor_cache_holds_ten_thousand_words_and_drops_the_oldest() -> None:
    """Words of four vectors of 768 dimensions, as in Stable Diffusion, take 128 MiB. One more word drops the oldest."""
    cache: TensorCache[str] = TensorCache(10_000 * 4 * 768 * 4)
    for number in range(10_000):
        cache.put(str(number), torch.full((4, 768), float(number)))
    assert len(cache) == 10_000
    assert all(float(vectors[0, 0]) == n for n in range(0, 10_000, 37) if (vectors := cache.get(str(n))) is not None)
    held = cache.get("1")
    cache.put("one more", torch.zeros(4, 768))
    assert cache.get("0") is not None or len(cache) == 10_000
    assert cache.held_bytes <= 10_000 * 4 * 768 * 4
    cache.put("0", torch.ones(4, 768))
    assert held is not None
    assert np.all(held.numpy() == 1)
