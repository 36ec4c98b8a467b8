"""Training on the bundled model: what it learns, and that equal tasks give equal vectors."""

import io
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.checkpoint import BaseModel
from diffusion.encoder import PromptEncoder
from diffusion.errors import PromptTooLong
from tests.trainer.conftest import REX
from trainer.errors import Diverged, InitializerUnknown, MaskEmpty
from trainer.training import stopping
from trainer.training.initializers import BestWord, FromVectors, FromWords, Initializer
from trainer.training.recipe import Schedule, recipes
from trainer.training.run import Learned, Step, Task
from trainer.training.schedule import cooling_steps
from trainer.training.stopping import LEAST_STEPS
from trainer.training.template_fitter import TemplateFitter
from trainer.worker.checkpoint_codec import read_checkpoint, write_checkpoint
from trainer.worker.engine import Engine, Stopped
from trainer.worker.provenance import MAX_POINTS, curve

RECIPE = replace(recipes("miniature")["object"], steps=3, rows=2)


@pytest.fixture(scope="session")
def engine(model: BaseModel) -> Engine:
    return Engine(model)


def task(**changes: Any) -> Task:
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in REX[:2]]
    fields: dict[str, Any] = {
        "pictures": pictures,
        "templates": [["a photo of a {}", "a picture of the {}"]] * 2,
        "start": FromWords(words="toy"),
        "vectors": 1,
        "seed": 0,
        "recipe": RECIPE,
    }
    return Task(**(fields | changes))


def learn(engine: Engine, **changes: Any) -> Learned:
    return engine.learn(task(**changes), lambda step: None, threading.Event())


def test_equal_tasks_give_equal_vectors(engine: Engine, model: BaseModel) -> None:
    first = learn(engine)
    # Other work in between and another engine leave no trace.
    other = learn(engine, seed=1)
    again = learn(Engine(model))
    assert np.array_equal(first.vectors, again.vectors)
    assert first.losses == again.losses
    assert not np.array_equal(first.vectors, other.vectors)


def test_learned_vectors_and_steps_have_the_requested_shape(engine: Engine) -> None:
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


@pytest.mark.compute
def test_training_lowers_the_loss(engine: Engine) -> None:
    """Compared with the loss on the same draws at a learning rate near zero."""
    recipe = replace(RECIPE, steps=12, rows=4)
    still = learn(engine, recipe=replace(recipe, learning_rate=1e-6))
    learned = learn(engine, recipe=recipe)
    assert np.mean(learned.losses[4:]) < np.mean(still.losses[4:])


def test_training_leaves_the_model_unchanged(engine: Engine, model: BaseModel) -> None:
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
        {"schedule": Schedule.CONSTANT},
        {"first_timestep": 900},
        {"last_timestep": 100},
    ],
)
def test_every_field_of_a_recipe_changes_the_result(engine: Engine, change: dict[str, Any]) -> None:
    two = replace(RECIPE, steps=2, rows=4)
    plain, changed = learn(engine, recipe=two), learn(engine, recipe=replace(two, **change))
    assert not np.array_equal(plain.vectors, changed.vectors)


def test_hold_norm_keeps_vectors_at_the_vocabularys_norm(engine: Engine, model: BaseModel) -> None:
    learned = learn(engine, recipe=replace(RECIPE, hold_norm=True), vectors=2)
    wanted = model.text_encoder.get_input_embeddings().weight.norm(dim=-1).mean().item()
    assert np.linalg.norm(learned.vectors, axis=-1) == pytest.approx([wanted, wanted], rel=1e-4)


def test_vectors_start_at_their_words_or_at_the_mean_of_the_words(engine: Engine, model: BaseModel) -> None:
    table = model.text_encoder.get_input_embeddings().weight.detach()
    ids = engine.initializers.words.ids("red toy")
    almost_nothing = replace(RECIPE, steps=1, learning_rate=1e-9)
    two = learn(engine, start=FromWords(words="red toy"), vectors=2, recipe=almost_nothing)
    assert two.vectors == pytest.approx(table[ids].numpy(), abs=1e-6)
    three = learn(engine, start=FromWords(words="red toy"), vectors=3, recipe=almost_nothing)
    assert three.vectors == pytest.approx(table[ids].mean(0).expand(3, -1).numpy(), abs=1e-6)


@pytest.mark.parametrize("word", ["xylophone", "<|endoftext|>", "toy qwertz", "🙂"])
def test_start_outside_of_the_vocabulary_is_rejected(engine: Engine, word: str) -> None:
    with pytest.raises(InitializerUnknown) as refused:
        engine.initializers.words.ids(word)
    assert refused.value.reason == "START_UNKNOWN"


def test_encoded_words_start_at_the_encoders_output(engine: Engine, model: BaseModel) -> None:
    """Cross Initialization: the encoder's output at the positions of the words, far from the vocabulary's norm."""
    almost_nothing = replace(RECIPE, steps=1, learning_rate=1e-9)
    learned = learn(engine, start=FromWords(words="red toy", encoded=True), vectors=2, recipe=almost_nothing)
    ids = [model.tokenizer.bos_token_id, *engine.initializers.words.ids("red toy"), model.tokenizer.eos_token_id]
    padded = ids + [model.tokenizer.pad_token_id] * (model.spec.encoders[0].length - len(ids))
    with torch.no_grad():
        hidden = model.text_encoder(torch.tensor([padded])).last_hidden_state
    assert learned.vectors == pytest.approx(hidden[0, 1:3].numpy(), abs=1e-5)
    one = learn(engine, start=FromWords(words="red toy", encoded=True), recipe=almost_nothing)
    assert one.vectors == pytest.approx(learned.vectors.mean(axis=0, keepdims=True), abs=1e-5)


def test_training_starts_from_existing_vectors(engine: Engine) -> None:
    first = learn(engine)
    still = learn(engine, start=FromVectors(vectors=first.vectors), recipe=replace(RECIPE, steps=1, learning_rate=1e-9))
    assert still.vectors == pytest.approx(first.vectors, abs=1e-6)


@pytest.mark.compute
def test_best_word_has_a_lower_loss_than_the_usual_start(engine: Engine) -> None:
    """On draws that the choice has not used. Equal seeds choose the same word."""

    def chosen(seed: int) -> str:
        run = engine.prepare(task(start=BestWord(usual="snow"), seed=seed))
        vector = torch.from_numpy(run.state(0.0).start[0])
        return str(model_word(engine, vector))

    first = chosen(0)
    assert first == chosen(0) != "snow"
    still = replace(RECIPE, steps=1, rows=32, learning_rate=1e-9)

    def loss(start: Initializer) -> float:
        return learn(engine, start=start, recipe=still, seed=5).losses[0]

    assert loss(FromWords(words=first)) < loss(FromWords(words="snow"))


def model_word(engine: Engine, vector: torch.Tensor) -> str:
    """The word of the vocabulary that has this vector."""
    index = int((engine.initializers.table - vector).norm(dim=-1).argmin())
    assert torch.equal(engine.initializers.table[index], vector)
    return str(engine._model.tokenizer.convert_ids_to_tokens(index).removesuffix("</w>"))


def test_progressive_recipe_trains_one_then_two_then_three_vectors(engine: Engine) -> None:
    """Three vectors in six steps: vectors that are not in the sentences yet do not change."""
    run = engine.prepare(task(recipe=replace(RECIPE, steps=6, progressive=True, weight_decay=0.1), vectors=3))
    start = run.learned().vectors
    moved = []
    while not run.done:
        before = run.learned().vectors
        engine.tick([(run, run.rows_left)])
        moved.append([bool(row) for row in (run.learned().vectors != before).any(axis=1)])
    assert moved == [[True, False, False]] * 2 + [[True, True, False]] * 2 + [[True, True, True]] * 2
    assert (run.learned().vectors != start).any(axis=1).all()


def test_masks_limit_the_loss_to_their_white_area(engine: Engine) -> None:
    white, left = Image.new("L", (64, 64), 255), Image.new("L", (64, 64), 0)
    left.paste(255, (0, 0, 32, 64))
    plain = learn(engine)
    assert np.array_equal(learn(engine, masks=[white, None]).vectors, plain.vectors)
    assert not np.array_equal(learn(engine, masks=[left, left]).vectors, plain.vectors)

    # Errors in the black area have no weight.
    run = engine.prepare(task(recipe=replace(RECIPE, flips=True), masks=[left, None]))
    cells = run.latents.weights.shape[-1]
    assert run.latents.weights.mean(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1, 1, 1])
    assert run.latents.weights[0, 0, 0].tolist() == [2.0] * (cells // 2) + [0.0] * (cells // 2)
    assert run.latents.weights[2, 0, 0].tolist() == [0.0] * (cells // 2) + [2.0] * (cells // 2)  # its mirror

    with pytest.raises(MaskEmpty) as refused:
        engine.prepare(task(masks=[Image.new("L", (64, 64), 0), white]))
    assert refused.value.reason == "MASK_EMPTY"


@pytest.mark.compute
def test_early_stopping_cools_down_and_ends(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """If every cosine is below the threshold, the rule fires at the first step that it may."""
    monkeypatch.setattr(stopping, "THRESHOLD", 2.0)
    recipe = replace(RECIPE, steps=30, rows=1, schedule=Schedule.HOLD_THEN_COOL, early_stopping=True)
    seen: list[Step] = []
    learned = engine.learn(task(recipe=recipe), seen.append, threading.Event())
    assert learned.stop_reason == "converged"
    rates = [step.learning_rate for step in seen]
    held = rates.count(recipe.learning_rate)
    assert held == LEAST_STEPS
    assert len(rates) == held + cooling_steps(recipe)
    assert rates[held:] == sorted(rates[held:], reverse=True)
    assert rates[-1] == pytest.approx(recipe.learning_rate * recipe.final_learning_rate)
    assert (seen[0].steps, seen[-1].steps) == (30, len(rates))
    # A checkpoint in between does not change the result.
    run = engine.prepare(task(recipe=recipe))
    while run.step < held + 3:
        engine.tick([(run, 1)])
    resumed = engine.prepare(task(recipe=recipe), read_checkpoint(write_checkpoint(run.state(0.0))))
    while not resumed.done:
        engine.tick([(resumed, 1)])
    assert np.array_equal(resumed.learned().vectors, learned.vectors)


def test_first_of_is_the_first_word_in_the_vocabulary(engine: Engine) -> None:
    assert engine.initializers.words.first_of(["xylophone", "painting", "toy"]) == "painting"


def test_template_without_room_for_the_vectors_is_rejected(model: BaseModel) -> None:
    templates = TemplateFitter(PromptEncoder(model).tokenizer)
    templates.check_length("a photo of a {}", 16)
    with pytest.raises(PromptTooLong):
        templates.check_length("a photo of a {} " + "on the beach " * 5, 16)


def test_stop_event_stops_training_after_the_current_step(engine: Engine) -> None:
    stop = threading.Event()
    seen: list[int] = []

    def on_step(step: Step) -> None:
        seen.append(step.step)
        stop.set()

    with pytest.raises(Stopped):
        engine.learn(task(), on_step, stop)
    assert seen == [1]


def test_nan_vectors_fail_the_task_as_diverged(engine: Engine) -> None:
    with pytest.raises(Diverged) as refused:
        learn(engine, recipe=replace(RECIPE, learning_rate=1e38))
    assert (refused.value.reason, refused.value.metadata) == ("DIVERGED", {"step": "2"})


@pytest.mark.parametrize("count", [1, 2, 999, 1000, 1001, 5000])
def test_loss_curve_is_thinned_to_a_maximum_of_points(count: int) -> None:
    points = curve([float(index) for index in range(count)])
    assert len(points) == min(count, MAX_POINTS)
    steps = [point.step for point in points]
    assert (steps[0], steps[-1]) == (1, count)
    assert steps == sorted(set(steps))
    assert all(point.loss == point.step - 1 for point in points)
