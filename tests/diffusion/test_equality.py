"""Pictures are bit-identical to those of diffusers' own pipeline with load_textual_inversion."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pseudoword.names import WordRef
from safetensors.torch import save_file

from diffusion import decode, denoise
from diffusion.checkpoint import BaseModel
from diffusion.denoise import DecodedInitImage, Denoising
from diffusion.encoder import PromptEncoder
from diffusion.prompt import parse
from diffusion.schedulers import SCHEDULERS, make_scheduler
from diffusion.spec import BUNDLED

pytestmark = pytest.mark.compute
Vectors = Mapping[WordRef, torch.Tensor]
_SEED = 3


@pytest.fixture(scope="module")
def pipeline(vectors: Vectors, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The pipeline of diffusers on the bundled checkpoint, with our words loaded from files."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        str(BUNDLED), dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    folder: Path = tmp_path_factory.mktemp("words")
    for ref, tensor in vectors.items():
        save_file({f"<{ref}>": tensor}, folder / f"{ref}.safetensors")
        pipeline.load_textual_inversion(folder, weight_name=f"{ref}.safetensors")
    yield pipeline


def ours(
    model: BaseModel, vectors: Vectors, prompt: str, negative: str = "", *, guidance: float = 4.0, **how: Any
) -> Denoising:
    encoder = PromptEncoder(model)
    size = model.spec.sample_size_px
    settings: dict[str, Any] = {"scheduler": "ddim", "steps": 4, "seed": _SEED, "width": size, "height": size} | how
    return Denoising(
        model,
        embeds=encoder.encode([parse(prompt)], vectors),
        negative=encoder.encode([parse(negative)], vectors) if guidance > 1 else None,
        guidance=guidance,
        **settings,
    )


def drawn(model: BaseModel, denoising: Denoising) -> np.ndarray:
    while not denoising.done:
        denoise.step(model, [denoising])
    return decode.decode(model, denoising.latents)[0]


def theirs(pipeline: Any, model: BaseModel, prompt: str, scheduler: str, **how: Any) -> np.ndarray:
    kind = SCHEDULERS[scheduler]
    seeded = {"noise_sampler_seed": _SEED} if kind.seeded else {}
    pipeline.scheduler = getattr(diffusers, kind.class_name).from_config(
        model.scheduler_config, **kind.arguments, **seeded
    )
    generator = torch.Generator("cpu").manual_seed(_SEED)
    image = pipeline(prompt, generator=generator, output_type="pil", **how).images[0]
    return np.asarray(image)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@torch.inference_mode()
def test_every_scheduler_draws_the_pixels_of_diffusers(
    model: BaseModel, vectors: Vectors, pipeline: Any, scheduler: str
) -> None:
    prompt, negative = "a photo of <rex> beside <mia> on the beach", "a sketch of <mia>"
    mine = drawn(model, ours(model, vectors, prompt, negative, scheduler=scheduler))
    reference = theirs(
        pipeline, model, prompt, scheduler, negative_prompt=negative, num_inference_steps=4, guidance_scale=4.0
    )
    assert np.array_equal(mine, reference)
    assert mine.std() > 1


@pytest.mark.parametrize(
    ("prompt", "guidance", "size"),
    [
        ("a photo of <mia>", 1.0, (64, 64)),
        ("<rex> <rex>, two <rex> and a dog", 7.5, (64, 64)),
        ("", 4.0, (64, 64)),
        ("A Photo of a DOG & <rex>'s hat < 3", 4.0, (64, 64)),
        ("a photo of <rex>", 4.0, (96, 72)),
    ],
)
@torch.inference_mode()
def test_prompts_guidance_and_sizes_give_the_pixels_of_diffusers(
    model: BaseModel, vectors: Vectors, pipeline: Any, prompt: str, guidance: float, size: tuple[int, int]
) -> None:
    width, height = size
    mine = drawn(model, ours(model, vectors, prompt, guidance=guidance, width=width, height=height))
    reference = theirs(
        pipeline, model, prompt, "ddim", num_inference_steps=4, guidance_scale=guidance, width=width, height=height
    )
    assert mine.shape == (height, width, 3)
    assert np.array_equal(mine, reference)


@pytest.fixture(scope="module")
def pictures() -> tuple[Image.Image, Image.Image]:
    """A start picture, and a mask with an edge between latent cells."""
    ramp = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[13:51, 22:] = 255
    return Image.fromarray(ramp), Image.fromarray(mask)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("masked", [False, True], ids=["image", "inpaint"])
@torch.inference_mode()
def test_start_picture_and_mask_give_the_pixels_of_diffusers(
    model: BaseModel,
    vectors: Vectors,
    pipeline: Any,
    pictures: tuple[Image.Image, Image.Image],
    scheduler: str,
    strength: float,
    masked: bool,
) -> None:
    picture, mask = pictures
    kind = diffusers.StableDiffusionInpaintPipeline if masked else diffusers.StableDiffusionImg2ImgPipeline
    other = kind(**pipeline.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    how: dict[str, Any] = {"image": picture, "strength": strength} | ({"mask_image": mask} if masked else {})
    if masked:
        how |= {"width": 64, "height": 64}
    reference = theirs(other, model, "a photo of <rex>", scheduler, num_inference_steps=4, guidance_scale=4.0, **how)
    init_image = DecodedInitImage(picture=picture, strength=strength, mask=mask if masked else None)
    denoising = ours(model, vectors, "a photo of <rex>", scheduler=scheduler, init_image=init_image)
    assert denoising.calls == SCHEDULERS[scheduler].model_calls(4, strength)
    assert np.array_equal(drawn(model, denoising), reference)


_TEXT = st.sampled_from(["a photo of ", "a ", "dog", " on the beach", ", ", "'s ", "<", "\u00e9", "HAT", " ", "1"])
_PARTS = st.lists(st.one_of(_TEXT, st.sampled_from(["<rex>", "<mia>"])), max_size=8)


@given(_PARTS)
@settings(max_examples=60, deadline=None)
@torch.inference_mode()
def test_hidden_states_equal_those_of_diffusers(
    model: BaseModel, vectors: Vectors, pipeline: Any, parts: Sequence[str]
) -> None:
    text = "".join(parts)
    expected, _ = pipeline.encode_prompt(text, "cpu", 1, False)
    hidden = PromptEncoder(model).encode([parse(text)], vectors)
    assert torch.equal(hidden, expected)


@torch.inference_mode()
def test_encoding_a_word_leaves_the_vocabulary_unchanged(model: BaseModel, vectors: Vectors) -> None:
    encoder = PromptEncoder(model)
    table = encoder.vocabulary.clone()
    before = encoder.encode([parse("a photo of a dog")], {})
    encoder.encode([parse("<rex> and <mia>")], vectors)
    assert torch.equal(encoder.encode([parse("a photo of a dog")], {}), before)
    assert torch.equal(encoder.vocabulary, table)


@torch.inference_mode()
def test_mixed_schedulers_share_calls_within_one_level_of_255(model: BaseModel, vectors: Vectors) -> None:
    """Latents are within 1e-3 of the value range of each picture alone."""
    names = list(SCHEDULERS)
    how: list[dict[str, Any]] = [
        {"prompt": "a photo of <rex>", "scheduler": name, "steps": 3 + i % 4, "guidance": (1.0, 4.0, 7.5)[i % 3]}
        for i, name in enumerate(names)
    ]
    alone, together = ([ours(model, vectors, **one) for one in how] for _ in range(2))
    for one in alone:
        drawn(model, one)
    waiting, flying = together[::-1], [together[-1]]
    waiting = waiting[1:]
    while flying:  # a picture joins at every call
        denoise.step(model, flying)
        flying = [one for one in flying if not one.done] + waiting[:1]
        waiting = waiting[1:]
    for name, solo, mixed in zip(names, alone, together, strict=True):
        span = (solo.latents.max() - solo.latents.min()).item()
        assert (solo.latents - mixed.latents).abs().max().item() < 1e-3 * span, name
        left, right = (decode.decode(model, each.latents)[0].astype(int) for each in (solo, mixed))
        assert np.abs(left - right).max() <= 1, name


@pytest.mark.parametrize("name", SCHEDULERS)
def test_number_of_model_calls_is_known_in_advance(model: BaseModel, name: str) -> None:
    for steps in (1, 2, 3, 20, 50, 150):
        if steps > SCHEDULERS[name].max_steps:
            continue
        scheduler = make_scheduler(name, model.scheduler_config, seed=0)
        scheduler.set_timesteps(steps)
        assert len(scheduler.timesteps) == SCHEDULERS[name].model_calls(steps)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2])
@torch.inference_mode()
def test_one_and_two_steps_give_finite_latents(model: BaseModel, name: str, steps: int) -> None:
    denoising = ours(model, {}, "a photo of a dog", scheduler=name, steps=steps)
    drawn(model, denoising)
    assert torch.isfinite(denoising.latents).all()
