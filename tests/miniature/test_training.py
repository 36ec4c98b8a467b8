"""Training of the bundled model: it can be killed at any step, and runs through all stages."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import StableDiffusionPipeline
from hypothesis import given
from torch import nn
from transformers import CLIPTextModel

from diffusion.checkpoint import BaseModel
from diffusion.spec import BUNDLED
from miniature.__main__ import main
from miniature.captions import caption
from miniature.judges.attributes import ATTRIBUTES, targets
from miniature.judges.classifier import Classifier
from miniature.judges.clip import Judge
from miniature.paint import paint
from miniature.training import layout
from miniature.training.drawings import HELD_OUT, TRAINING, Drawings
from miniature.training.judging import Batches, mirrored
from miniature.training.stages import STAGES
from miniature.training.tokenizer import train_tokenizer
from miniature.training.vectors import Vectors
from miniature.world import Drawing, Pattern, random_colour, random_drawing, random_toy
from tests.miniature.worlds import drawings
from trainer.learned.fitting import Plan, train
from trainer.training.start_network import FOLDER, KINDS, load


class Killed(Exception):
    pass


class Regression:
    """A linear layer learns a fixed layer; at step `until` the process is killed."""

    def __init__(self, module: nn.Module, until: int | None = None) -> None:
        self._module = module
        self._left = until

    def __call__(self, generator: torch.Generator) -> torch.Tensor:
        if self._left is not None:
            if self._left == 0:
                raise Killed
            self._left -= 1
        inputs = torch.randn(16, 4, generator=generator)
        error: torch.Tensor = (self._module(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
        return error


def untrained() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 1)


@pytest.mark.compute
def test_killed_run_resumes_to_equal_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(steps=30, batch=16, rate=0.2, warmup=3, averaging=0.6)
    whole = untrained()
    train("whole", whole, plan, Regression(whole), tmp_path / "whole")
    monkeypatch.setattr("trainer.learned.fitting._SAVE_EVERY_S", 0)  # after each step
    for until in (8, 5, None):
        broken = untrained()
        try:
            train("broken", broken, plan, Regression(broken, until), tmp_path / "broken")
        except Killed:
            continue
    assert torch.equal(whole.weight, broken.weight)
    assert torch.equal(whole.bias, broken.bias)
    assert (whole.weight - 1).norm() < 0.5 * (untrained().weight - 1).norm()
    assert (tmp_path / "broken" / "loss.png").stat().st_size > 1000


def test_rate_rises_then_falls_to_its_floor() -> None:
    plan = Plan(steps=1000, batch=1, rate=2.0, warmup=100, floor=0.1)
    rates = [plan.rate_at(step) for step in range(1000)]
    assert rates.index(max(rates)) in range(95, 105)
    assert max(rates) == pytest.approx(2.0, rel=0.05)
    assert rates[-1] == pytest.approx(0.2, rel=0.01)


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first thousand drawings."""
    folder = tmp_path_factory.mktemp("work") / "drawings"
    assert list(Drawings(folder, 1000).paint())[-1] == 1000
    return folder


@pytest.mark.compute
def test_drawings_depend_on_number_and_split_only(painted: Path) -> None:
    training = Drawings(painted, 1000, TRAINING)
    assert list(training.paint()) == [1000]
    rng = np.random.default_rng((TRAINING, 7, 1))
    assert np.array_equal(training.pixels[7], np.asarray(paint(training.drawing(7), rng)))
    assert training.drawing(7) != Drawings(painted, 1000, HELD_OUT).drawing(7)


def test_new_vocabulary_keeps_the_hidden_states_of_old_sentences(tmp_path: Path) -> None:
    """Each token of the old vocabulary has a place in the new vocabulary."""
    known = ["a photo of a red cat on the beach", "a sketch of two owls", "a photo of a blue ball wearing a hat"]
    old = layout.load_tokenizer(BUNDLED)
    train_tokenizer([*known * 3, "a zebra beside a quokka"] * 5, tmp_path / "tokenizer")
    new = layout.load_tokenizer(tmp_path)
    encoder = CLIPTextModel.from_pretrained(BUNDLED / "text_encoder", dtype=torch.float32).eval()
    carried = layout.carry_text_encoder(encoder, old, new).eval()
    assert old(known).input_ids != new(known).input_ids
    for sentence in known:
        before, after = (
            model(torch.tensor([tokenizer(sentence, padding="max_length").input_ids])).last_hidden_state
            for model, tokenizer in ((encoder, old), (carried, new))
        )
        assert torch.allclose(before[:, :8], after[:, :8], atol=1e-5)


def test_added_attention_does_not_change_the_output() -> None:
    torch.manual_seed(0)
    before = layout.new_unet().eval()
    after = layout.carry_unet(before, layout.new_unet(fine_attention=True)).eval()
    assert sum(values.numel() for values in after.parameters()) > sum(one.numel() for one in before.parameters())
    latents, hidden = torch.randn(2, 4, 16, 16), torch.randn(2, 32, layout.WIDTH)
    with torch.no_grad():
        old, new = (unet(latents, torch.tensor([3, 700]), hidden).sample for unet in (before, after))
    assert torch.allclose(old, new, atol=1e-6)
    with pytest.raises(ValueError, match="no place for"):
        layout.carry_unet(after, layout.new_unet())


@pytest.mark.compute
def test_all_stages_make_a_model_and_judges_that_can_be_loaded(painted: Path) -> None:
    work = painted.parent
    options = ["train", "--work", str(work), "--from-committed", "--share", "0.0005", "--threads", "1"]
    result = CliRunner().invoke(main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(work / "finished")
    finished = work / "finished"
    model = BaseModel.load(str(finished / "model"))
    assert not [file for file in (finished / "model").rglob("*.json") if "_name_or_path" in file.read_text("utf-8")]
    assert (model.spec.family, model.spec.sample_size_px, model.spec.encoders[0].length) == ("miniature", 64, 32)
    pictures = [paint(random_drawing(np.random.default_rng(seed)), np.random.default_rng(seed)) for seed in range(3)]
    clip = Judge.load(finished / "clip")
    assert torch.allclose(clip.look(pictures).norm(dim=1), torch.ones(3), atol=1e-4)
    for judge in (clip, Classifier.load(finished / "classifier")):
        answers = judge.judge(pictures)
        assert {name: tuple(found.shape) for name, found in answers.items()} == {
            name: (3, len(attribute.answers)) for name, attribute in ATTRIBUTES.items()
        }
    Vectors.load(finished / "vectors")
    assert load(finished / "model" / FOLDER, model.spec).kinds == KINDS
    before = (finished / "model" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert CliRunner().invoke(main, options, catch_exceptions=False).exit_code == 0
    after = (finished / "model" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert before == after  # a finished stage is not repeated


@pytest.mark.compute
def test_model_with_eight_latent_channels_is_trained_from_scratch(painted: Path, tmp_path: Path) -> None:
    shutil.copytree(painted, tmp_path / "drawings")
    options = ["--work", str(tmp_path), "--latent-channels", "8", "--share", "0.0001", "--threads", "1"]
    stages = ["drawings", "tokenizer", "vae", "diffusion", "start"]
    result = CliRunner().invoke(main, ["train", *stages, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    model = BaseModel.load(str(tmp_path / "model"))
    assert (model.spec.latent_channels, model.unet.config.in_channels) == (8, 8)
    assert load(tmp_path / "model" / FOLDER, model.spec).kinds == KINDS
    pipeline = StableDiffusionPipeline.from_pretrained(
        tmp_path / "model", dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    assert pipeline("a photo of a red dog", num_inference_steps=2).images[0].size == (64, 64)
    refused = CliRunner().invoke(main, ["train", "--from-committed", *options])
    assert (refused.exit_code, "leave out --latent-channels" in refused.output) == (2, True)


def test_train_command_lists_the_stages_in_order() -> None:
    arguments = main.commands["train"].params[0].type
    assert tuple(arguments.choices) == tuple(STAGES)  # type: ignore[attr-defined]


@given(drawings())
def test_mirrored_drawing_differs_in_left_and_right_only(drawing: Drawing) -> None:
    seen = mirrored(drawing)
    if seen is None:
        assert drawing.other is not None and drawing.relation == "left of"
        return
    assert mirrored(seen) == drawing
    for attribute in ATTRIBUTES.values():
        assert attribute.seen(seen) == attribute.seen(drawing)
        assert attribute.truth(seen) == attribute.truth(drawing)
    swapped = caption(drawing, np.random.default_rng(0)).with_words(style="a style").split()
    exchanged = {"left": "right", "right": "left"}
    assert caption(seen, np.random.default_rng(0)).with_words(style="a style").split() == [
        exchanged.get(word, word) for word in swapped
    ]


@pytest.mark.compute
def test_judges_are_trained_on_moved_and_mirrored_drawings(painted: Path) -> None:
    training = Drawings(painted, 1000)
    shown, pixels = Batches(training, 64, torch.device("cpu")).draw(torch.Generator().manual_seed(0))
    as_painted = {training.drawing(number) for number in range(1000)}
    assert pixels.shape == (64, 3, 64, 64)
    assert (
        0 < sum(drawing not in as_painted for drawing in shown) < 32
    )  # a mirrored drawing differs only if it has a side
    clean, exact = Batches(training, 64, torch.device("cpu"), clean=True).draw(torch.Generator().manual_seed(0))
    assert set(clean) <= as_painted
    assert torch.equal(
        exact[0], torch.from_numpy(training.pixels[_number(training, clean[0])]).permute(2, 0, 1) / 127.5 - 1
    )


def _number(training: Drawings, drawing: Drawing) -> int:
    return next(number for number in range(training.count) if training.drawing(number) == drawing)


@pytest.mark.parametrize(
    ("pattern", "answers"),
    [("plain", ("red",)), ("dotted", ("red",)), ("striped", ("red", "blue")), ("checkered", ("red", "blue"))],
)
def test_colours_of_a_toy_depend_on_its_pattern(pattern: Pattern, answers: tuple[str, ...]) -> None:
    toy = random_toy(np.random.default_rng(0), colour="red", second="blue", pattern=pattern)
    drawing = Drawing(toy=toy, background=random_colour(np.random.default_rng(1), "white"))
    assert ATTRIBUTES["colour"].truth(drawing) == answers
    shares, seen = targets([drawing], ATTRIBUTES["colour"])
    assert (seen.tolist(), shares.sum(), shares.max()) == ([True], 1, 1 / len(answers))
