"""Pictures that step together: bit-identical to their schedulers alone, and without a wait for the device."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from pseudoword.names import WordRef
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion import decode, denoise
from diffusion.checkpoint import BaseModel
from diffusion.denoise import Denoising
from diffusion.denoiser import LocalDenoiser
from diffusion.encoder import PromptEncoder
from diffusion.graphs import called
from diffusion.loading import load_model
from diffusion.prompt import parse
from diffusion.schedulers import SCHEDULERS, make_scheduler
from diffusion.settings import ModelSettings
from diffusion.solvers import solver_of
from rpc.settings import SettingsError

TOGETHER = ("ddim", "euler", "dpm++-2m", "dpm++-2m-karras")


class Elementwise:
    """A denoiser whose rows do not depend on the other rows, so that only the steps can differ."""

    def predict(
        self, inputs: torch.Tensor, timesteps: torch.Tensor, hidden: torch.Tensor, *, alone: bool = False
    ) -> torch.Tensor:
        weight = hidden.mean(dim=(1, 2))[:, None, None, None] + timesteps[:, None, None, None] / 1000
        return torch.sin(inputs * 3) + weight * inputs


class Stub:
    """The part of a BaseModel that a step needs."""

    def __init__(self, model: BaseModel, prediction: str) -> None:
        self.spec, self.device, self.dtype = model.spec, model.device, model.dtype
        self.scheduler_config = model.scheduler_config | {"prediction_type": prediction}
        self.denoiser = Elementwise()


def started(model: Any, scheduler: str, steps: int, guidance: float, seed: int) -> Denoising:
    hidden = torch.randn(2, 32, model.spec.encoders[0].dims, generator=torch.Generator().manual_seed(seed))
    hidden = hidden.to(model.device)
    return Denoising(
        model,
        embeds=hidden[:1],
        negative=hidden[1:] if guidance > 1 else None,
        scheduler=scheduler,
        steps=steps,
        guidance=guidance,
        seed=seed,
        width=64,
        height=64,
    )


def by_the_library(model: Any, scheduler: str, steps: int, guidance: float, seed: int) -> torch.Tensor:
    """The latents of diffusers' own loop."""
    start = started(model, scheduler, steps, guidance, seed)
    latents, own = start.latents, make_scheduler(scheduler, model.scheduler_config, seed=seed)
    own.set_timesteps(steps)
    for timestep in own.timesteps:
        seen = own.scale_model_input(latents, timestep)
        rows = torch.cat([seen] * len(start.hidden))
        predicted = model.denoiser.predict(rows, timestep.float().expand(len(rows)), torch.cat([*start.hidden]))
        if len(rows) == 2:
            without, with_prompt = predicted.chunk(2)
            predicted = without + guidance * (with_prompt - without)
        latents = own.step(predicted, timestep, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler", TOGETHER)
@torch.inference_mode()
def test_pictures_stepped_together_are_bit_identical_to_diffusers(
    model: BaseModel, scheduler: str, prediction: str
) -> None:
    """Pictures with other numbers of steps, guidance and schedulers join at every call."""
    stub: Any = Stub(model, prediction)
    how = [(scheduler, 1 + seed * 3 % 17, (1.0, 4.3, 7.5)[seed % 3], seed) for seed in range(12)]
    how += [("euler-a", 5, 4.0, 50), ("heun", 3, 1.0, 51)]
    waiting = [started(stub, *one) for one in how]
    flying: list[Denoising] = []
    pictures = list(waiting)
    while waiting or flying:
        flying += waiting[:2]
        waiting = waiting[2:]
        denoise.step(stub, flying)
        flying = [one for one in flying if not one.done]
    for one, picture in zip(how[:12], pictures[:12], strict=True):
        assert torch.equal(picture.latents, by_the_library(stub, *one)), one
        assert picture.latents.std() > 0


def test_schedulers_with_a_solver_are_those_that_step_together(model: BaseModel) -> None:
    made = {}
    for name in SCHEDULERS:
        scheduler = make_scheduler(name, model.scheduler_config, seed=0)
        scheduler.set_timesteps(4)
        made[name] = solver_of(scheduler)
    assert {name for name, solver in made.items() if solver is not None} == set(TOGETHER)
    clipping = make_scheduler("ddim", model.scheduler_config | {"clip_sample": True}, seed=0)
    clipping.set_timesteps(4)
    assert solver_of(clipping) is None


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operations that copy a number of a tensor to the host, for which the queue of a GPU must drain."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_steps_never_wait_for_the_device(model: BaseModel) -> None:
    pictures = [
        started(model, name, 3, guidance, 1) for name, guidance in zip(TOGETHER, (1.0, 4.0, 4.0, 1.0), strict=True)
    ]
    with torch.no_grad(), Waits() as waits:
        while not pictures[0].done:
            denoise.step(model, pictures)
    assert waits.found == []
    alone = [started(model, "euler-a", 3, 4.0, 1)]
    with torch.no_grad(), Waits() as waits:
        denoise.step(model, alone)
    assert waits.found  # the recorder works


@torch.inference_mode()
def test_rows_are_padded_to_a_bucket(model: BaseModel) -> None:
    """The device sees the shape of the bucket, and rows get the bits of a call of that shape."""
    seen: list[torch.Size] = []

    def unet(inputs: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        seen.append(inputs.shape)
        return model.unet(inputs, *arguments, **named)

    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(3, 4, 16, 16, generator=generator)
    times, hidden = (
        torch.tensor([1.0, 500.0, 900.0]),
        torch.randn(3, 32, model.spec.encoders[0].dims, generator=generator),
    )
    filled = LocalDenoiser(unet, (2, 8, 4))
    found = filled.predict(inputs, times, hidden)
    whole = [torch.cat([rows, rows[-1:]]) for rows in (inputs, times, hidden)]
    assert torch.equal(found, LocalDenoiser(model.unet).predict(*whole)[:3])
    span = found.max() - found.min()
    assert (found - filled.predict(inputs, times, hidden, alone=True)).abs().max() < 1e-3 * span
    filled.predict(*(torch.cat([rows] * 3) for rows in (inputs, times, hidden)))
    assert [shape[0] for shape in seen] == [4, 3, 9]


@torch.inference_mode()
def test_recorded_calls_give_equal_bits(model: BaseModel) -> None:
    """Tests all that CUDA graphs need except the capture: static tensors that are copied into and out of."""
    plain, recorded = LocalDenoiser(model.unet, (2, 4)), LocalDenoiser(model.unet, (2, 4), called)
    generator = torch.Generator().manual_seed(1)

    def drawn(rows: int, cells: int) -> tuple[torch.Tensor, ...]:
        latents = torch.randn(rows, 4, cells, cells, generator=generator)
        hidden = torch.randn(rows, 32, model.spec.encoders[0].dims, generator=generator)
        return latents, torch.full((rows,), 10.0 * rows), hidden

    asked = [drawn(rows, cells) for rows, cells in ((2, 16), (3, 16), (2, 24), (2, 16), (4, 16))]
    found = [recorded.predict(*one) for one in asked]
    # Compared after the last call: no call overwrites an earlier result.
    for one, result in zip(asked, found, strict=True):
        assert torch.equal(result, plain.predict(*one))


def test_calls_are_recorded_once_for_each_bucket_and_size(model: BaseModel) -> None:
    made, played = 0, 0

    def record(run: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
        nonlocal made
        made += 1
        play, output = called(run)

        def counted() -> None:
            nonlocal played
            played += 1
            play()

        return counted, output

    def unet(latents: torch.Tensor, *_: Any, **__: Any) -> Any:
        return (latents + 1,)

    denoiser = LocalDenoiser(unet, (2, 4), record)
    for rows, alone in ((1, False), (2, False), (3, False), (2, True), (5, False), (4, False)):
        tensors = torch.zeros(rows, 4, 8, 8), torch.zeros(rows), torch.zeros(rows, 32, 128)
        assert torch.equal(denoiser.predict(*tensors, alone=alone), tensors[0] + 1)
    assert (made, played) == (2, 4)
    for cells in range(1, 40):  # more sizes than are kept
        denoiser.predict(torch.zeros(2, 4, 8, cells), torch.zeros(2), torch.zeros(2, 32, 128))
    before = made
    denoiser.predict(torch.zeros(2, 4, 8, 39), torch.zeros(2), torch.zeros(2, 32, 128))
    assert made == before
    denoiser.predict(torch.zeros(2, 4, 8, 1), torch.zeros(2), torch.zeros(2, 32, 128))
    assert made == before + 1


def test_graphs_need_row_buckets_and_a_cuda_device() -> None:
    with pytest.raises(ValidationError, match="needs row_buckets"):
        ModelSettings(graphs=True)
    with pytest.raises(SettingsError, match="needs a CUDA device"):
        load_model(ModelSettings(graphs=True, row_buckets=(2,), device="cpu"))


@pytest.mark.gpu
def test_cuda_graphs_draw_the_same_pictures_as_calls() -> None:
    graphs = BaseModel.load(None, device="cuda", row_buckets=(2, 4), graphs=True)
    calls = BaseModel.load(None, device="cuda", row_buckets=(2, 4))
    for rows in (3, 4, 3):
        both = []
        for one in (graphs, calls):
            pictures = [started(one, "euler", 4, 1.0, seed) for seed in range(rows)]
            with torch.inference_mode():
                while not pictures[0].done:
                    denoise.step(one, pictures)
            both.append(torch.cat([picture.latents for picture in pictures]))
        assert torch.allclose(both[0], both[1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)  # a CPU without bfloat16 is ten times slower in it
@torch.inference_mode()
def test_half_precision_draws_the_same_picture(model: BaseModel, vectors: Mapping[WordRef, torch.Tensor]) -> None:
    """bfloat16 throughout against float32: at least 40 dB of PSNR; 53 were measured."""
    half = BaseModel.load(None, dtype=torch.bfloat16)
    for name in ("ddim", "dpm++-2m"):
        pair = []
        for one in (model, half):
            picture = Denoising(
                one,
                embeds=PromptEncoder(one).encode([parse("a photo of <rex>")], vectors),
                negative=None,
                scheduler=name,
                steps=3,
                guidance=1.0,
                seed=1,
                width=64,
                height=64,
            )
            while not picture.done:
                denoise.step(one, [picture])
            assert picture.latents.dtype == one.dtype
            pair.append(torch.from_numpy(decode.decode(one, picture.latents)[0]).float())
        psnr = float(10 * torch.log10(255**2 / (pair[0] - pair[1]).square().mean()))
        assert psnr > 40, (name, psnr)
