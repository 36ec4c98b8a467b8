"""Our engine in this process: no servers, no streams, no files. What is between it and the bare loop is its own."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np
import torch
from prometheus_client import CollectorRegistry
from pseudoword.generation.v1 import generation_pb2, resources_pb2
from pseudoword.names import WordRef

from benchmarks.generation.workload import Asked
from diffusion.checkpoint import BaseModel
from service.admission import Roster
from service.drawing import Drawing, check
from service.engine import Engine
from service.mailbox import Drawn, Mailbox
from service.metrics import EngineMetrics
from service.pace import Pace
from service.policy import Policy
from service.request import Request
from service.settings import Defaults, Limits


class Bare:
    """An engine that draws the benchmark's mix."""

    def __init__(self, model: BaseModel, words: Mapping[str, np.ndarray]) -> None:
        self._model = model
        self._words = {name: torch.from_numpy(tensor).to(model.device) for name, tensor in words.items()}
        self._engine = make(model)

    def __enter__(self) -> Self:
        self._engine.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._engine.stop()

    def draw(self, asked: Sequence[Asked]) -> None:
        """Draws all."""
        asyncio.run(self._draw(asked))

    async def _draw(self, asked: Sequence[Asked]) -> None:
        requests = [self._request(one) for one in asked]
        for request in requests:
            self._engine.submit(request)
        await asyncio.gather(*map(drawn, requests))

    def _request(self, one: Asked) -> Request:
        vectors = {WordRef(None, one.word): self._words[one.word]}
        _, drawing = checked(one, self._model)
        mailbox = Mailbox(asyncio.get_running_loop())
        return Request(drawing=drawing, vectors=vectors, mailbox=mailbox, arrived=time.monotonic())


def make(model: BaseModel) -> Engine:
    """An engine with room for everything; not started."""
    size = model.spec.sample_size_px
    policy = Policy(Roster(max_pictures=10_000, max_rows=32), Pace((size, size)))
    return Engine(model, policy, EngineMetrics(CollectorRegistry()))


def checked(one: Asked, model: BaseModel) -> tuple[resources_pb2.PictureSettings, Drawing]:
    """A request's settings, and what the server makes of them."""
    settings = resources_pb2.PictureSettings(
        prompt=one.prompt, seed=one.seed, steps=one.steps, guidance_scale=one.guidance, scheduler=one.scheduler
    )
    request = generation_pb2.GenerateRequest(parent="tenants/default", settings=settings)
    return settings, check(request, model.spec, Defaults(), Limits())


async def drawn(request: Request) -> None:
    """Returns when a request's one picture is there."""
    async for event in request.mailbox.events():
        if isinstance(event, Drawn):
            return
