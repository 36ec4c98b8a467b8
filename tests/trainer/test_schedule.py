"""The learning rate of each step, the last step, and the rule that stops training early."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.training.recipe import Recipe, Schedule, recipes
from trainer.training.schedule import cooling_steps, end_of, rate_of, vectors_at
from trainer.training.stopping import LEAST_STEPS, WINDOW, StopRule

USUAL = recipes("miniature")["object"]


def rates(recipe: Recipe, converged: int | None = None) -> list[float]:
    """The rate of every step."""
    found = []
    for step in range(end_of(recipe, converged)):
        found.append(rate_of(recipe, step, converged if converged is not None and step >= converged else None))
    return found


@given(steps=st.integers(1, 300), final=st.floats(0, 1), schedule=st.sampled_from(Schedule), fired=st.integers(1, 300))
def test_rates_fall_from_the_learning_rate_to_its_final_share(
    steps: int, final: float, schedule: Schedule, fired: int
) -> None:
    recipe = replace(USUAL, steps=steps, final_learning_rate=final, schedule=schedule)
    for converged in (None, min(fired, steps)):
        seen = rates(recipe, converged)
        assert 1 <= len(seen) <= steps
        assert all(final * recipe.learning_rate * 0.999999 <= rate <= recipe.learning_rate for rate in seen)
        assert all(after <= before for before, after in pairwise(seen))
    assert len(rates(recipe)) == steps


def test_hold_then_cool_cools_down_after_the_stop_rule_fires() -> None:
    recipe = replace(USUAL, steps=50, schedule=Schedule.HOLD_THEN_COOL)
    assert cooling_steps(recipe) == 10
    early = rates(recipe, converged=20)
    assert early.count(recipe.learning_rate) == 20
    assert len(early) == 30
    assert early[-1] == pytest.approx(recipe.learning_rate * recipe.final_learning_rate)
    # If the rule does not fire, or fires too late for a whole cool-down, the cool-down ends at the limit of steps.
    assert rates(recipe).count(recipe.learning_rate) == 40
    assert len(rates(recipe, converged=45)) == 50


def test_other_schedules_end_where_the_stop_rule_fires() -> None:
    assert len(rates(replace(USUAL, steps=50, schedule=Schedule.CONSTANT), converged=30)) == 30


def test_progressive_recipe_adds_vectors_at_equal_distances() -> None:
    recipe = replace(USUAL, steps=9, progressive=True)
    assert [vectors_at(recipe, step, 3) for step in range(9)] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert vectors_at(replace(recipe, progressive=False), 0, 3) == 3


def test_stop_rule_fires_when_successive_gradients_oppose_each_other() -> None:
    def fired(cosines: list[float]) -> int | None:
        rule = StopRule()
        return next((step for step, cosine in enumerate(cosines, 1) if rule.fires(cosine, step)), None)

    assert fired([0.3] * 100) is None
    assert fired([-0.3] * 100) == LEAST_STEPS
    turned = fired([0.3] * 60 + [-0.3] * 60)
    assert turned is not None
    assert 60 < turned <= 60 + WINDOW


def test_stop_rule_resumes_from_its_recent_cosines() -> None:
    cosines = [0.2] * 25 + [-0.1] * 30
    whole, first = StopRule(), StopRule()
    expected = [whole.fires(cosine, step) for step, cosine in enumerate(cosines, 1)]
    seen = [first.fires(cosine, step) for step, cosine in enumerate(cosines[:30], 1)]
    again = StopRule(first.recent)
    seen += [again.fires(cosine, step) for step, cosine in enumerate(cosines[30:], 31)]
    assert seen == expected
