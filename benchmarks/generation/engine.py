"""Our engine in this process: no servers, no streams, no files. What is between it and the bare loop is its own."""

import asyncio
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from prometheus_client import CollectorRegistry
from pseudoword.generation.v1 import generation_pb2, resources_pb2
from pseudoword.names import WordRef

from benchmarks.generation.workload import Asked
from diffusion.checkpoint import BaseModel
from service.engine.engine import Engine
from service.metrics import EngineMetrics
from service.request.mailbox import Drawn, Mailbox
from service.request.params import GenerationParams, validate
from service.request.request import Request
from service.scheduling.cost_model import StepCostModel
from service.scheduling.scheduler import Scheduler
from service.settings import Defaults, Limits


def draw(model: BaseModel, words: Mapping[str, np.ndarray], asked: Sequence[Asked]) -> float:
    """Draws all with an engine of its own; the seconds that took, its start left out."""
    tensors = {name: torch.from_numpy(tensor).to(model.device) for name, tensor in words.items()}
    engine = make(model)
    engine.start()
    try:
        began = time.monotonic()
        asyncio.run(_draw(engine, model, tensors, asked))
        return time.monotonic() - began
    finally:
        engine.stop()


async def _draw(engine: Engine, model: BaseModel, words: Mapping[str, torch.Tensor], asked: Sequence[Asked]) -> None:
    requests = []
    for one in asked:
        params = checked(one, model)
        vectors = {WordRef(None, one.word): words[one.word]}
        mailbox = Mailbox(asyncio.get_running_loop())
        requests.append(Request(params=params, vectors=vectors, mailbox=mailbox, arrived=time.monotonic()))
        engine.submit(requests[-1])
    await asyncio.gather(*map(drawn, requests))


def make(model: BaseModel) -> Engine:
    """An engine with room for everything; not started."""
    scheduler = Scheduler(StepCostModel(model.spec.sample_shape_px), max_pictures=10_000, max_rows=32)
    return Engine(model, scheduler, EngineMetrics(CollectorRegistry()))


def checked(one: Asked, model: BaseModel) -> GenerationParams:
    """What the server makes of a request's settings."""
    settings = resources_pb2.PictureSettings(
        prompt=one.prompt, seed=one.seed, steps=one.steps, guidance_scale=one.guidance, scheduler=one.scheduler
    )
    request = generation_pb2.GenerateRequest(parent="tenants/default", settings=settings)
    return validate(request, model.spec, Defaults(), Limits())


async def drawn(request: Request) -> None:
    """Returns when a request's one picture is there."""
    async for event in request.mailbox.events():
        if isinstance(event, Drawn):
            return
