"""A Generation server draws through Triton, and survives when Triton is killed."""

import io
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from PIL import Image
from pseudoword.channel import Endpoints
from pseudoword.client import Client
from pseudoword.errors import PseudowordError
from pseudoword.generation.v1 import resources_pb2
from pseudoword.picture import Picture

from diffusion import decode, denoise
from diffusion.checkpoint import BaseModel
from diffusion.denoise import Denoising
from diffusion.encoder import PromptEncoder
from diffusion.prompt import parse
from tests.conftest import Eventually
from tests.processes import Process
from tests.triton.servers import Triton

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]  # it starts two servers, and Triton once more
_PROMPT, _SEED, _STEPS = "a photo of a dog in the snow", 11, 5


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.data)).convert("RGB")).astype(int)


@torch.inference_mode()
def drawn_here(model: BaseModel) -> np.ndarray:
    encoder = PromptEncoder(model)
    picture = Denoising(
        model,
        embeds=encoder.encode([parse(_PROMPT)], {}),
        negative=encoder.encode([parse("")], {}),
        scheduler="ddim",
        steps=_STEPS,
        guidance=4.0,
        seed=_SEED,
        width=64,
        height=64,
    )
    while not picture.done:
        denoise.step(model, [picture])
    return decode.decode(model, picture.latents)[0].astype(int)


def test_generation_draws_on_triton_before_and_after_its_restart(
    triton: Triton, local: BaseModel, tmp_path: Path, eventually: Eventually
) -> None:
    settings = ["--denoiser.kind", "triton", "--denoiser.endpoints", triton.address]
    with (
        Process("registry", tmp_path, "--store.address", str(tmp_path / "store")) as registry,
        Process(
            "service",
            tmp_path,
            *("--registry.address", registry.address),
            *settings,
            environment={"OMP_NUM_THREADS": "1"},
        ) as generation,
        Client(Endpoints(registry=registry.address, generation=generation.address)) as client,
    ):

        def draw() -> np.ndarray:
            (picture,) = client.draw(_PROMPT, seed=_SEED, steps=_STEPS, scheduler="ddim", guidance_scale=4.0)
            return pixels(picture)

        expected = drawn_here(local)
        before = triton.counter("nv_inference_request_success", "denoiser")
        assert np.abs(draw() - expected).max() <= 1
        eventually(lambda: triton.counter("nv_inference_request_success", "denoiser") >= before + _STEPS)

        killed = False
        with pytest.raises(PseudowordError) as caught:
            for event in client.generate(resources_pb2.PictureSettings(prompt=_PROMPT, steps=150)):
                if event.WhichOneof("event") == "progress" and not killed:
                    triton.kill()  # in the middle of the work
                    killed = True
        assert killed
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "DENOISER_UNAVAILABLE")
        assert caught.value.retry_after is not None
        assert triton.address not in caught.value.message

        triton.start()
        assert np.abs(draw() - expected).max() <= 1
        assert generation.terminate() == 0
