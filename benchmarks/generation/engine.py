"""Our engine in this process, without servers, streams and files. Compared with the bare loop it shows the engine's
overhead."""

import asyncio
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from prometheus_client import CollectorRegistry
from pseudoword.generation.v1 import generation_pb2, resources_pb2
from pseudoword.names import WordRef

from benchmarks.generation.workload import DrawRequest
from diffusion.checkpoint import BaseModel
from service.engine.engine import Engine
from service.metrics import EngineMetrics
from service.request.mailbox import Drawn, Mailbox
from service.request.params import GenerationParams, validate
from service.request.request import Request
from service.scheduling.cost_model import StepCostModel
from service.scheduling.scheduler import Scheduler
from service.settings import Defaults, Limits


def draw(model: BaseModel, words: Mapping[str, np.ndarray], workload: Sequence[DrawRequest]) -> float:
    """Draws all requests with a new engine. Returns the seconds, without the engine's start."""
    tensors = {name: torch.from_numpy(tensor).to(model.device) for name, tensor in words.items()}
    engine = make(model)
    engine.start()
    try:
        began = time.monotonic()
        asyncio.run(_draw(engine, model, tensors, workload))
        return time.monotonic() - began
    finally:
        engine.stop()


async def _draw(
    engine: Engine, model: BaseModel, words: Mapping[str, torch.Tensor], workload: Sequence[DrawRequest]
) -> None:
    requests = []
    for one in workload:
        params = checked(one, model)
        vectors = {WordRef(None, one.word): words[one.word]}
        mailbox = Mailbox(asyncio.get_running_loop())
        requests.append(Request(params=params, vectors=vectors, mailbox=mailbox, arrived=time.monotonic()))
        engine.submit(requests[-1])
    await asyncio.gather(*map(drawn, requests))


def make(model: BaseModel) -> Engine:
    """An engine with a queue large enough for any workload; not started."""
    scheduler = Scheduler(StepCostModel(model.spec.sample_shape_px), max_pictures=10_000, max_rows=32)
    return Engine(model, scheduler, EngineMetrics(CollectorRegistry()))


def checked(one: DrawRequest, model: BaseModel) -> GenerationParams:
    """The validated parameters of a request."""
    settings = resources_pb2.PictureSettings(
        prompt=one.prompt, seed=one.seed, steps=one.steps, guidance_scale=one.guidance, scheduler=one.scheduler
    )
    request = generation_pb2.GenerateRequest(parent="tenants/default", settings=settings)
    return validate(request, model.spec, Defaults(), Limits())


async def drawn(request: Request) -> None:
    """Waits until the request's picture is drawn."""
    async for event in request.mailbox.events():
        if isinstance(event, Drawn):
            return
