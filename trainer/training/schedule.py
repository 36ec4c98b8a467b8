"""The schedule of the learning rate, and the end of training. Pure."""

import math
from enum import StrEnum

from trainer.training.recipe import Recipe, Schedule


class StopReason(StrEnum):
    """Why training ended; recorded with the version."""

    STEPS = "steps"  # the recipe's number of steps was reached
    CONVERGED = "converged"  # the stopping rule fired
    AT_ONCE = "learned-start"  # an initial version, published before training


def cooling_steps(recipe: Recipe) -> int:
    """Steps of a cool-down: a fifth of the recipe's steps."""
    return max(1, recipe.steps // 5)


def end_of(recipe: Recipe, converged: int | None) -> int:
    """The number of steps of a job whose stopping rule has fired after `converged` steps; None if it has not."""
    if converged is None:
        return recipe.steps
    cooling = cooling_steps(recipe) if recipe.schedule is Schedule.HOLD_THEN_COOL else 0
    return min(recipe.steps, converged + cooling)


def rate_of(recipe: Recipe, step: int, converged: int | None) -> float:
    """The learning rate of a step (from 0), in units of the vocabulary's root mean square."""
    match recipe.schedule:
        case Schedule.CONSTANT:
            return recipe.learning_rate
        case Schedule.COSINE:
            return recipe.learning_rate * _cosine_factor(recipe, step, recipe.steps)
        case Schedule.HOLD_THEN_COOL:
            length = cooling_steps(recipe)
            # The cool-down's first step is already below the held rate.
            into = step - (end_of(recipe, converged) - length) + 1
            return recipe.learning_rate * (1.0 if into <= 0 else _cosine_factor(recipe, into, length + 1))


def vectors_at(recipe: Recipe, step: int, vectors: int) -> int:
    """How many of a word's vectors are in use at a step (from 0): all, or with a progressive recipe one more after each
    of `vectors` equal stretches of steps (arXiv 2208.01618, section 5.1, progressive extensions)."""
    return min(vectors, 1 + step * vectors // recipe.steps) if recipe.progressive else vectors


def _cosine_factor(recipe: Recipe, step: int, steps: int) -> float:
    """The rate's factor: from 1 at step 0 along a cosine to final_learning_rate at step `steps` - 1."""
    if steps == 1:
        return 1.0
    fall = (1 + math.cos(math.pi * step / (steps - 1))) / 2
    return recipe.final_learning_rate + (1 - recipe.final_learning_rate) * fall
