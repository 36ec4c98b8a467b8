"""The safety checker of a checkpoint, by policy. A small random checker here flags every picture or none, by its
thresholds."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from prometheus_client import CollectorRegistry
from pseudoword.generation.v1 import generation_pb2, resources_pb2
from transformers import CLIPConfig, CLIPImageProcessor

from diffusion.checkpoint import BaseModel
from diffusion.errors import CheckpointInvalid
from diffusion.safety import SafetyChecker
from diffusion.spec import BUNDLED
from rpc.settings import SettingsError
from service.app import _safety
from service.engine.engine import Engine
from service.metrics import EngineMetrics
from service.request.mailbox import Drawn, Mailbox, Previewed
from service.request.params import validate
from service.request.request import Request
from service.safety import Safety
from service.scheduling.cost_model import StepCostModel
from service.scheduling.scheduler import Scheduler
from service.settings import Defaults, GenerationSettings, Limits

Make = Callable[[float], str]
CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Make:
    """checkpoint(threshold) is a copy of the bundled checkpoint with a checker that flags cosines above it."""

    def make(threshold: float) -> str:
        place = Path(shutil.copytree(BUNDLED, tmp_path / f"checked{threshold}"))
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        vision |= {"image_size": 32, "patch_size": 16}
        torch.manual_seed(1)
        checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
        checker.concept_embeds_weights.data.fill_(threshold)
        checker.special_care_embeds_weights.data.fill_(2.0)
        checker.save_pretrained(place / "safety_checker")
        size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        CLIPImageProcessor(**size).save_pretrained(place / "feature_extractor")
        index = json.loads((place / "model_index.json").read_text())
        index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
        index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
        (place / "model_index.json").write_text(json.dumps(index))
        return str(place)

    return make


def test_thresholds_of_the_checkpoint_decide(checkpoint: Make) -> None:
    pictures = [np.full((64, 64, 3), level, dtype=np.uint8) for level in (0, 90, 255)]
    before = [picture.copy() for picture in pictures]
    assert list(SafetyChecker.load(checkpoint(-1.5), device=CPU).check(pictures)) == [True] * 3
    assert list(SafetyChecker.load(checkpoint(1.5), device=CPU).check(pictures)) == [False] * 3
    assert all(np.array_equal(one, other) for one, other in zip(pictures, before, strict=True))


async def drawn(model: BaseModel, safety: Safety | None) -> tuple[Drawn, int]:
    """A picture, and the number of its previews."""
    scheduler = Scheduler(StepCostModel((64, 64)), max_pictures=9, max_rows=2)
    metrics = EngineMetrics(CollectorRegistry())
    engine = Engine(model, scheduler, metrics, safety=safety)
    settings = resources_pb2.PictureSettings(prompt="a dog", steps=3, seed=1, exact=True)
    asked = generation_pb2.GenerateRequest(parent="tenants/a", settings=settings, preview_every=1)
    params = validate(asked, model.spec, Defaults(), Limits())
    request = Request(params=params, vectors={}, mailbox=Mailbox(asyncio.get_running_loop()))
    engine.submit(request)
    await asyncio.to_thread(engine.start)
    previews = 0
    try:
        async for event in request.mailbox.events():
            previews += isinstance(event, Previewed)
            if isinstance(event, Drawn):
                return event, previews
    finally:
        await asyncio.to_thread(engine.stop)
    raise AssertionError("unreachable")


async def test_policy_flags_withholds_or_passes_pictures(checkpoint: Make, model: BaseModel) -> None:
    plain, previews = await drawn(model, None)
    assert previews >= 1
    assert not plain.flagged
    strict, lax = checkpoint(-1.5), checkpoint(1.5)

    def safety(source: str, policy: str) -> Safety | None:
        return _safety(GenerationSettings(model={"source": source}, safety=policy), model)  # type: ignore[arg-type]

    assert safety(strict, "off") is None
    flagged, previews = await drawn(model, safety(strict, "flag"))
    assert (flagged.flagged, flagged.withheld) == (True, False)
    assert previews >= 1
    assert np.array_equal(flagged.pixels, plain.pixels)
    withheld, previews = await drawn(model, safety(strict, "refuse"))
    assert (withheld.flagged, withheld.withheld, previews) == (True, True, 0)
    assert withheld.pixels.shape == plain.pixels.shape
    assert not withheld.pixels.any()
    passed, _ = await drawn(model, safety(lax, "refuse"))
    assert (passed.flagged, passed.withheld) == (False, False)
    assert np.array_equal(passed.pixels, plain.pixels)


def test_policy_without_a_checker_is_a_settings_error(model: BaseModel) -> None:
    with pytest.raises(SettingsError, match="has no safety checker"):
        _safety(GenerationSettings(safety="flag"), model)  # type: ignore[arg-type]
    with pytest.raises(CheckpointInvalid):
        SafetyChecker.load("/nowhere", device=CPU)
