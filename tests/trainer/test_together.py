"""Batches of several jobs: the other jobs of a batch change only the time that a job takes."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from pseudoword.names import WordRef

from diffusion.checkpoint import BaseModel
from diffusion.encoder import PromptEncoder
from diffusion.prompt import parse
from tests.trainer.test_engine import RECIPE, learn, task
from trainer.errors import Diverged
from trainer.training.initializers import FromWords
from trainer.training.losses import Part
from trainer.training.run import Run, Step
from trainer.worker.engine import Engine, TickResult

pytestmark = pytest.mark.compute
FOUR = replace(RECIPE, steps=4, rows=4)


@pytest.fixture(scope="module")
def engine(model: BaseModel) -> Engine:
    return Engine(model)


def train(engine: Engine, runs: Sequence[Run], *, rows: int = 3) -> dict[int, list[TickResult]]:
    """Trains all runs together to their ends, `rows` of each in a tick. The results of the ticks, by run."""
    ticked: dict[int, list[TickResult]] = {id(run): [] for run in runs}
    left = list(runs)
    while left:
        for one in engine.tick([(run, min(rows, run.rows_left)) for run in left]):
            ticked[id(one.run)].append(one)
            if one.error is not None or one.run.done:
                left.remove(one.run)
    return ticked


def first_step(engine: Engine, runs: Sequence[Run], rows: int) -> list[np.ndarray]:
    """The gradient of each run's first step: the change of the vectors by SGD with a rate of one."""
    for run in runs:
        run._optimiser = torch.optim.SGD(run.leaves, lr=1.0)
    before = [run.learned().vectors for run in runs]
    left = list(runs)
    while left:
        engine.tick([(run, min(rows, run.rows_left)) for run in left])
        left = [run for run in left if run.step == 0]
    rate = FOUR.learning_rate * engine.unit.rms
    return [(start - run.learned().vectors) / rate for run, start in zip(runs, before, strict=True)]


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_gradient_in_a_mixed_batch_equals_that_of_the_job_alone(engine: Engine, rows: int) -> None:
    """Within a relative L2 of 1e-4, at equal vectors, for any split of a step's rows into ticks."""
    tasks = [
        task(recipe=FOUR, seed=1),
        task(recipe=replace(FOUR, rows=2, min_snr_gamma=5.0), seed=2, vectors=3, start=FromWords(words="red toy")),
        task(recipe=replace(FOUR, flips=True, rows=5), seed=3, start=FromWords(words="red")),
    ]
    alone = [first_step(engine, [engine.prepare(one)], rows=8)[0] for one in tasks]
    mixed = first_step(engine, [engine.prepare(one) for one in tasks], rows=rows)
    for solo, other in zip(alone, mixed, strict=True):
        assert np.linalg.norm(solo) > 0
        assert np.linalg.norm(solo - other) / np.linalg.norm(solo) < 1e-4


@torch.no_grad()
def held_out_loss(model: BaseModel, engine: Engine, vectors: np.ndarray) -> float:
    """Denoising loss on fixed draws on which no job was trained."""
    word, noise = WordRef(None, "w"), DDPMScheduler.from_config(model.scheduler_config)
    latents = engine.prepare(task(recipe=FOUR)).latents.means.repeat(12, 1, 1, 1)
    drawn = torch.randn(latents.shape, generator=torch.Generator().manual_seed(11))
    times = torch.arange(len(latents)) * 41 % 1000
    hidden = PromptEncoder(model).encode([parse("a photo of a <w>")], {word: torch.from_numpy(vectors)})
    noisy = noise.add_noise(latents, drawn, times)
    predicted = model.unet(noisy, times, hidden.expand(len(latents), -1, -1)).sample
    return float((predicted - drawn).square().mean())


def test_jobs_trained_together_reach_the_held_out_loss_of_jobs_trained_alone(engine: Engine, model: BaseModel) -> None:
    recipe = replace(RECIPE, steps=12, rows=3)
    tasks = [task(recipe=recipe, seed=seed) for seed in range(2)]
    runs = [engine.prepare(one) for one in tasks]
    train(engine, runs)
    for one, run in zip(tasks, runs, strict=True):
        alone = learn(engine, recipe=recipe, seed=one.seed)
        assert held_out_loss(model, engine, run.learned().vectors) == pytest.approx(
            held_out_loss(model, engine, alone.vectors), rel=0.01
        )


def test_equal_batches_give_equal_bits(engine: Engine) -> None:
    first, again = ([engine.prepare(task(recipe=FOUR, seed=seed)) for seed in range(3)] for _ in range(2))
    train(engine, first)
    train(engine, again)
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.learned().vectors, other.learned().vectors)


@pytest.mark.parametrize("trouble", ["turns NaN", "ends", "is cancelled"])
def test_job_that_leaves_a_batch_does_not_change_the_others(engine: Engine, trouble: str) -> None:
    """The others' vectors are those of training alone, up to rounding in batches of other shapes."""
    others = [engine.prepare(task(recipe=FOUR, seed=seed)) for seed in range(2)]
    leaving = {
        "turns NaN": replace(FOUR, learning_rate=1e38),
        "ends": replace(FOUR, steps=1),
        "is cancelled": FOUR,
    }[trouble]
    run = engine.prepare(task(recipe=leaving, seed=7))
    if trouble == "is cancelled":
        engine.tick([(one, 3) for one in [run, *others]])
        train(engine, others)
    else:
        last = train(engine, [run, *others])[id(run)][-1]
        if trouble == "turns NaN":
            assert isinstance(last.error, Diverged)
            assert last.error.reason == "DIVERGED"
        else:
            assert run.done
    for seed, other in enumerate(others):
        alone = learn(engine, recipe=FOUR, seed=seed)
        assert other.learned().vectors == pytest.approx(alone.vectors, rel=1e-2, abs=1e-3)
        assert other.losses == pytest.approx(alone.losses, rel=1e-3)


def test_error_of_one_job_ends_only_that_job(engine: Engine) -> None:
    good = engine.prepare(task(recipe=FOUR))
    bad = engine.prepare(task(recipe=FOUR, templates=[["a photo of a {}" + " on the beach" * 20]] * 2))
    ticked = train(engine, [bad, good])
    assert [type(one.error).__name__ for one in ticked[id(bad)]] == ["PromptTooLong"]
    assert good.done


def test_out_of_memory_makes_ticks_smaller(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Engine(engine._model, max_rows=8)
    real = small._losses.of

    def limited(parts: Sequence[Part]) -> torch.Tensor:
        if sum(len(part.draws) for part in parts) > 2:
            raise torch.OutOfMemoryError("no more")
        return real(parts)

    monkeypatch.setattr(small._losses, "of", limited)
    seen: list[Step] = []
    learned = small.learn(task(recipe=FOUR), seen.append, threading.Event())
    assert small.max_rows == 2
    assert len(seen) == 4
    assert learned.losses == pytest.approx(learn(engine, recipe=FOUR).losses, rel=1e-3)


def test_bfloat16_gives_nearly_the_losses_of_float32(engine: Engine) -> None:
    """The forward pass runs in half precision, the vectors stay in fp32."""
    half = Engine(BaseModel.load(None, dtype=torch.bfloat16))
    run = half.prepare(task(recipe=FOUR))
    assert all(leaf.dtype == torch.float32 for leaf in run.leaves)
    train(half, [run])
    assert run.scale == 1.0
    assert run.losses == pytest.approx(learn(engine, recipe=FOUR).losses, rel=3e-2)


def test_float16_overflow_halves_the_loss_scale_of_its_own_job_only(engine: Engine) -> None:
    """The step whose gradients overflowed is repeated with the same draws."""
    half = Engine(BaseModel.load(None, dtype=torch.float16))
    recipe = replace(FOUR, steps=2, rows=1)
    run, other = (half.prepare(task(recipe=recipe, seed=seed)) for seed in range(2))
    usual, run.scale = run.scale, 2.0**28
    ticked = train(half, [run, other])
    assert len(ticked[id(run)]) > 2
    assert run.scale < 2.0**28
    assert [one.step.step for one in ticked[id(run)] if one.step is not None] == [1, 2]
    assert (len(ticked[id(other)]), other.scale) == (2, usual)
    for seed, one in enumerate((run, other)):
        assert one.losses == pytest.approx(learn(engine, recipe=recipe, seed=seed).losses, rel=5e-3)


def test_activation_checkpointing_gives_the_same_gradients(engine: Engine) -> None:
    saving = Engine(BaseModel.load(None), checkpoint_activations=True)
    assert saving._model.unet.is_gradient_checkpointing
    (plain,), (saved,) = (first_step(one, [one.prepare(task(recipe=FOUR))], rows=4) for one in (engine, saving))
    assert np.linalg.norm(plain - saved) / np.linalg.norm(plain) < 1e-4
