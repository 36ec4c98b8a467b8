"""Recipes: defaults are filled in, and invalid fields are named."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1.resources_pb2 import Recipe as Message
from pseudoword.trainer.v1.resources_pb2 import Start

from rpc.errors import InvalidArgument
from rpc.validate import Violations
from trainer.api.recipe_validation import validate_recipe
from trainer.training.recipe import Recipe, recipes, to_json

OBJECT = registry_resources.CONCEPT_KIND_OBJECT
STYLE = registry_resources.CONCEPT_KIND_STYLE
FACE = registry_resources.CONCEPT_KIND_FACE


def filled(message: Message, kind: int = OBJECT, family: str = "miniature") -> Recipe:
    wrong = Violations()
    recipe = validate_recipe(message, kind, family, wrong)
    wrong.raise_if_any()
    return recipe


def test_empty_recipe_is_the_default_of_the_kind_and_the_family() -> None:
    assert filled(Message()) == recipes("miniature")["object"]
    assert filled(Message(), STYLE) == recipes("miniature")["style"]
    assert filled(Message(name="style")) == recipes("miniature")["style"]
    assert filled(Message(), FACE) == recipes("miniature")["face"]
    assert filled(Message(), family="stable-diffusion-1") == recipes("stable-diffusion-1")["object"]


@given(
    steps=st.integers(1, 10_000),
    rows=st.integers(1, 64),
    learning_rate=st.floats(2**-10, 10, width=32),
    first=st.integers(0, 999),
    last=st.integers(0, 999),
    schedule=st.sampled_from([Message.SCHEDULE_CONSTANT, Message.SCHEDULE_COSINE, Message.SCHEDULE_HOLD_THEN_COOL]),
    timesteps=st.sampled_from([Message.TIMESTEPS_UNIFORM, Message.TIMESTEPS_STRATIFIED]),
    norm=st.sampled_from([Message.NORM_FREE, Message.NORM_VOCABULARY]),
    flips=st.booleans(),
    progressive=st.booleans(),
    early_stopping=st.booleans(),
)
def test_completed_recipe_is_read_back_unchanged(first: int, last: int, **given: Any) -> None:
    message = Message(first_timestep=min(first, last), last_timestep=max(first, last), **given)
    recipe = filled(message)
    whole = recipe.message()
    assert filled(whole).message() == whole
    assert whole.steps == given["steps"]
    assert whole.learning_rate == given["learning_rate"]
    for field in ("flips", "progressive", "early_stopping", "schedule"):
        assert getattr(whole, field) == given[field]
    written = json.loads(to_json(recipe, Start(words="toy")))
    assert (written["rows"], written["start"]) == (given["rows"], {"words": "toy"})


def test_zero_is_a_value_and_does_not_mean_unset() -> None:
    assert filled(Message(final_learning_rate=0.0)).final_learning_rate == 0
    assert filled(Message(last_timestep=0, first_timestep=0)).last_timestep == 0


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (Message(steps=0), "steps"),
        (Message(steps=10_001), "steps"),
        (Message(rows=65), "rows"),
        (Message(learning_rate=0), "learning_rate"),
        (Message(learning_rate=11), "learning_rate"),
        (Message(learning_rate=float("nan")), "learning_rate"),
        (Message(final_learning_rate=1.5), "final_learning_rate"),
        (Message(first_timestep=600, last_timestep=500), "first_timestep"),
        (Message(last_timestep=1000), "last_timestep"),
        (Message(clip_norm=-1), "clip_norm"),
        (Message(weight_decay=2), "weight_decay"),
        (Message(name="fast"), "name"),
        (Message(schedule=9), "schedule"),  # type: ignore[arg-type]
    ],
)
def test_fields_out_of_range_are_named(message: Message, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        filled(message)
    assert {name for name, _ in refused.value.violations} == {f"job.recipe.{field}"}
