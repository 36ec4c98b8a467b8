"""The engine on the bundled model: what it learns, and that equal tasks give equal vectors."""

import io
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion.checkpoint import BaseModel
from diffusion.errors import PromptTooLong
from rpc.errors import FailedPrecondition, InvalidArgument
from tests.trainer.conftest import REX
from trainer.engine import Engine, Stopped
from trainer.recipe import recipes
from trainer.record import MAX_POINTS, curve
from trainer.run import Learned, Step, Task

RECIPE = replace(recipes("miniature")["object"], steps=3, rows=2)


@pytest.fixture(scope="session")
def engine(model: BaseModel) -> Engine:
    return Engine(model)


def task(**changes: Any) -> Task:
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in REX[:2]]
    fields: dict[str, Any] = {
        "pictures": pictures,
        "templates": [["a photo of a {}", "a picture of the {}"]] * 2,
        "start": "toy",
        "vectors": 1,
        "seed": 0,
        "recipe": RECIPE,
    }
    return Task(**(fields | changes))


def learn(engine: Engine, **changes: Any) -> Learned:
    return engine.learn(task(**changes), lambda step: None, threading.Event())


def test_equal_tasks_give_equal_vectors(engine: Engine, model: BaseModel) -> None:
    first = learn(engine)
    # Other work in between, and another engine: nothing of either remains.
    other = learn(engine, seed=1)
    again = learn(Engine(model))
    assert np.array_equal(first.vectors, again.vectors)
    assert first.losses == again.losses
    assert not np.array_equal(first.vectors, other.vectors)


def test_what_comes_out(engine: Engine) -> None:
    seen: list[Step] = []
    learned = engine.learn(task(vectors=3), seen.append, threading.Event())
    assert learned.vectors.shape == (3, 128)
    assert learned.vectors.dtype == np.float32
    assert [step.step for step in seen] == [1, 2, 3]
    assert [step.loss for step in seen] == list(learned.losses)
    assert seen[0].learning_rate == RECIPE.learning_rate
    assert seen[-1].learning_rate == pytest.approx(RECIPE.learning_rate * RECIPE.final_learning_rate)
    # Each vector has a gradient of its own.
    assert len(np.unique(learned.vectors, axis=0)) == 3


def test_steps_lower_the_loss_that_they_are_made_for(engine: Engine) -> None:
    """On the very rows of the steps: the same draws at a rate of almost nothing are the measure."""
    recipe = replace(RECIPE, steps=12, rows=4)
    still = learn(engine, recipe=replace(recipe, learning_rate=1e-6))
    learned = learn(engine, recipe=recipe)
    assert np.mean(learned.losses[4:]) < np.mean(still.losses[4:])


def test_the_frozen_model_stays_as_it_was(engine: Engine, model: BaseModel) -> None:
    weights = [*model.unet.parameters(), *model.text_encoder.parameters(), *model.vae.parameters()]
    before = [weight.sum().item() for weight in weights]
    learn(engine)
    assert [weight.sum().item() for weight in weights] == before
    assert all(weight.grad is None and not weight.requires_grad for weight in weights)


@pytest.mark.parametrize(
    "change",
    [
        {"flips": True},
        {"min_snr_gamma": 5.0},
        {"clip_norm": 1e-6},
        {"start_weight": 10.0},
        {"weight_decay": 0.5},
        {"stratified": False},
        {"cosine": False},
        {"first_timestep": 900},
        {"last_timestep": 100},
    ],
)
def test_every_part_of_a_recipe_counts(engine: Engine, change: dict[str, Any]) -> None:
    two = replace(RECIPE, steps=2, rows=4)
    plain, changed = learn(engine, recipe=two), learn(engine, recipe=replace(two, **change))
    assert not np.array_equal(plain.vectors, changed.vectors)


def test_the_norm_can_be_held(engine: Engine, model: BaseModel) -> None:
    learned = learn(engine, recipe=replace(RECIPE, hold_norm=True), vectors=2)
    wanted = model.text_encoder.get_input_embeddings().weight.norm(dim=-1).mean().item()
    assert np.linalg.norm(learned.vectors, axis=-1) == pytest.approx([wanted, wanted], rel=1e-4)


def test_where_vectors_start(engine: Engine, model: BaseModel) -> None:
    table = model.text_encoder.get_input_embeddings().weight.detach()
    ids = engine.start_ids("red toy")
    almost_nothing = replace(RECIPE, steps=1, learning_rate=1e-9)
    two = learn(engine, start="red toy", vectors=2, recipe=almost_nothing)
    assert two.vectors == pytest.approx(table[ids].numpy(), abs=1e-6)
    three = learn(engine, start="red toy", vectors=3, recipe=almost_nothing)
    assert three.vectors == pytest.approx(table[ids].mean(0).expand(3, -1).numpy(), abs=1e-6)


@pytest.mark.parametrize("word", ["xylophone", "<|endoftext|>", "toy qwertz", "🙂"])
def test_a_start_outside_of_the_vocabulary(engine: Engine, word: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        engine.start_ids(word)
    assert refused.value.reason == "START_UNKNOWN"


def test_the_first_start_that_the_vocabulary_has(engine: Engine) -> None:
    assert engine.start_for(["xylophone", "painting", "toy"]) == "painting"


def test_a_sentence_must_have_room_for_its_word(engine: Engine) -> None:
    engine.check_length("a photo of a {}", 16)
    with pytest.raises(PromptTooLong):
        engine.check_length("a photo of a {} " + "on the beach " * 5, 16)


def test_stops_at_the_next_step(engine: Engine) -> None:
    stop = threading.Event()
    seen: list[int] = []

    def on_step(step: Step) -> None:
        seen.append(step.step)
        stop.set()

    with pytest.raises(Stopped):
        engine.learn(task(), on_step, stop)
    assert seen == [1]


def test_vectors_that_are_no_numbers_end_the_task(engine: Engine) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        learn(engine, recipe=replace(RECIPE, learning_rate=1e38))
    assert (refused.value.reason, refused.value.metadata) == ("DIVERGED", {"step": "2"})


@pytest.mark.parametrize("count", [1, 2, 999, 1000, 1001, 5000])
def test_a_long_curve_is_thinned(count: int) -> None:
    points = curve([float(index) for index in range(count)])
    assert len(points) == min(count, MAX_POINTS)
    steps = [point.step for point in points]
    assert (steps[0], steps[-1]) == (1, count)
    assert steps == sorted(set(steps))
    assert all(point.loss == point.step - 1 for point in points)
