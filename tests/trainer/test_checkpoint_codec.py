"""Checkpoints of training: written to bytes, and resumed from them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save

from diffusion.checkpoint import BaseModel
from tests.trainer.test_engine import RECIPE, task
from trainer.training.run import Run
from trainer.worker.checkpoint_codec import CheckpointInvalid, read_checkpoint, write_checkpoint
from trainer.worker.engine import Engine

TASK = task(recipe=replace(RECIPE, steps=4, rows=2, weight_decay=0.1, start_weight=0.5), vectors=2)


def train(engine: Engine, run: Run, steps: int) -> None:
    while run.step < steps:
        engine.tick([(run, run.rows_left)])


@pytest.fixture(scope="module")
def unbroken(model: BaseModel) -> Run:
    engine = Engine(model)
    run = engine.prepare(TASK)
    train(engine, run, 4)
    return run


@pytest.mark.parametrize("broken_after", [0, 1, 3])
def test_another_engine_resumes_a_checkpoint_to_equal_bits(model: BaseModel, unbroken: Run, broken_after: int) -> None:
    engine = Engine(model)
    run = engine.prepare(TASK)
    train(engine, run, broken_after)
    engine.tick([(run, 1)])  # an incomplete step is repeated
    data = write_checkpoint(run.state(trained_s=1.25))
    other = Engine(model)
    state = read_checkpoint(data)
    assert state.trained_s == 1.25
    resumed = other.prepare(TASK, state)
    assert resumed.step == broken_after
    train(other, resumed, 4)
    assert np.array_equal(resumed.learned().vectors, unbroken.learned().vectors)
    assert resumed.losses == unbroken.losses
    assert write_checkpoint(resumed.state(0.0)) == write_checkpoint(unbroken.state(0.0))


def test_checkpoint_keeps_the_chosen_initializer(model: BaseModel, unbroken: Run) -> None:
    state = read_checkpoint(write_checkpoint(unbroken.state(0.0)))
    assert np.array_equal(state.start, Engine(model).prepare(TASK).state(0.0).start)


def test_invalid_checkpoints_are_rejected(unbroken: Run) -> None:
    good = write_checkpoint(unbroken.state(0.0))
    arrays = {"vectors": np.zeros((1, 2), np.float32)}
    for data in (
        b"",
        b"\x80\x04pickle",
        good[:-7],
        save(arrays),
        save(arrays, metadata={"state": json.dumps({"format": 2})}),
        good.replace(b'format\\": 2', b'format\\": 9'),
        good.replace(b"good_steps", b"bad__steps"),
    ):
        with pytest.raises(CheckpointInvalid):
            read_checkpoint(data)
