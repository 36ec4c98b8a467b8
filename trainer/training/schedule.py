"""How the learning rate goes, and where training ends. Pure."""

import math
from enum import StrEnum

from trainer.training.recipe import Recipe, Schedule


class StopReason(StrEnum):
    """Why a job made no further step; recorded with its version."""

    STEPS = "steps"  # the recipe's limit
    CONVERGED = "converged"  # the stopping rule
    AT_ONCE = "learned-start"  # a first version, as the start was


def cooling_steps(recipe: Recipe) -> int:
    """Steps of a cool-down: a fifth of the limit."""
    return max(1, recipe.steps // 5)


def end_of(recipe: Recipe, converged: int | None) -> int:
    """How many steps are made, where the stopping rule has fired after `converged` steps, or not at all."""
    if converged is None:
        return recipe.steps
    cooling = cooling_steps(recipe) if recipe.schedule is Schedule.HOLD_THEN_COOL else 0
    return min(recipe.steps, converged + cooling)


def rate_of(recipe: Recipe, step: int, converged: int | None) -> float:
    """The learning rate of a step, counted from 0, in units of the vocabulary's root mean square."""
    match recipe.schedule:
        case Schedule.CONSTANT:
            return recipe.learning_rate
        case Schedule.COSINE:
            return recipe.learning_rate * _fallen(recipe, step, recipe.steps)
        case Schedule.HOLD_THEN_COOL:
            length = cooling_steps(recipe)
            # The cool-down's first step is lower than what was held already.
            into = step - (end_of(recipe, converged) - length) + 1
            return recipe.learning_rate * (1.0 if into <= 0 else _fallen(recipe, into, length + 1))


def vectors_at(recipe: Recipe, step: int, vectors: int) -> int:
    """How many of a word's vectors are there at a step, counted from 0: all, or one more after each of as many equal
    stretches as there are vectors (arXiv 2208.01618, section 5.1, progressive extensions)."""
    return min(vectors, 1 + step * vectors // recipe.steps) if recipe.progressive else vectors


def _fallen(recipe: Recipe, step: int, steps: int) -> float:
    """From 1 at step 0 to final_learning_rate at step `steps` - 1, along a cosine."""
    if steps == 1:
        return 1.0
    fall = (1 + math.cos(math.pi * step / (steps - 1))) / 2
    return recipe.final_learning_rate + (1 - recipe.final_learning_rate) * fall
