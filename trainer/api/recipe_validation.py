"""Validates a request's recipe and fills in its defaults."""

from pseudoword.trainer.v1 import resources_pb2

from rpc.validate import Violations
from trainer.training.recipe import RANGES, Recipe, from_message, name_of, recipes

_Message = resources_pb2.Recipe


def validate_recipe(message: resources_pb2.Recipe, kind: int, family: str, wrong: Violations) -> Recipe:
    """The complete recipe of a request. Adds invalid fields to `wrong`."""
    offered = recipes(family)
    name = message.name or name_of(kind)
    if name not in offered:
        wrong.add("job.recipe.name", f"{name[:64]!r} is not one of {', '.join(sorted(offered))}")
        return offered["object"]
    known = resources_pb2.Recipe()
    known.CopyFrom(message)
    for field, values in (("schedule", _Message.Schedule), ("timesteps", _Message.Timesteps), ("norm", _Message.Norm)):
        if getattr(message, field) not in values.values():
            wrong.add(f"job.recipe.{field}", "is not a value of its enum")
            known.ClearField(field)  # type: ignore[arg-type]
    recipe = from_message(known, kind, family)
    for field, (low, high) in RANGES.items():
        wrong.number(f"job.recipe.{field}", getattr(recipe, field), low, high)
    if not recipe.learning_rate > 0:
        wrong.add("job.recipe.learning_rate", "must be above 0")
    if recipe.first_timestep > recipe.last_timestep:
        wrong.add("job.recipe.first_timestep", f"must not be above last_timestep, {recipe.last_timestep}")
    return recipe
