"""A complete recipe for training, and the recipes that the trainer offers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from json import dumps
from typing import Any

from google.protobuf.json_format import MessageToDict
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1 import resources_pb2

_Message = resources_pb2.Recipe
GREATEST_TIMESTEP = 999


class Schedule(Enum):
    """The learning rate's schedule; schedule.py has the formulas."""

    CONSTANT = _Message.SCHEDULE_CONSTANT
    COSINE = _Message.SCHEDULE_COSINE
    HOLD_THEN_COOL = _Message.SCHEDULE_HOLD_THEN_COOL


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete recipe.

    `learning_rate` is in units of the root mean square of the vocabulary's values. A schedule that lowers it ends at
    `final_learning_rate`, a fraction of it. One optimiser step has `rows` rows.
    """

    name: str
    steps: int
    rows: int
    learning_rate: float
    final_learning_rate: float
    schedule: Schedule
    stratified: bool
    first_timestep: int
    last_timestep: int
    min_snr_gamma: float
    hold_norm: bool
    start_weight: float
    weight_decay: float
    clip_norm: float
    flips: bool
    progressive: bool
    early_stopping: bool

    def message(self) -> resources_pb2.Recipe:
        """As a message of the API, with every field set."""
        fields = asdict(self)
        schedule, stratified, hold_norm = (fields.pop(key) for key in ("schedule", "stratified", "hold_norm"))
        return resources_pb2.Recipe(
            **fields,
            schedule=schedule.value,
            timesteps=_Message.TIMESTEPS_STRATIFIED if stratified else _Message.TIMESTEPS_UNIFORM,
            norm=_Message.NORM_VOCABULARY if hold_norm else _Message.NORM_FREE,
        )


# Measured on the bundled miniature; docs/measurements/training.md has the method and the figures. The RMS of its
# vocabulary is 0.05.
OBJECT = Recipe(
    name="object",
    steps=50,
    rows=4,
    learning_rate=0.6,
    final_learning_rate=0.05,
    schedule=Schedule.COSINE,
    stratified=True,
    first_timestep=0,
    last_timestep=GREATEST_TIMESTEP,
    min_snr_gamma=0.0,
    hold_norm=False,
    start_weight=0.0,
    weight_decay=0.0,
    clip_norm=0.0,
    flips=False,
    progressive=False,
    early_stopping=False,
)
# For families other than the miniature's: the paper's values (arXiv 2208.01618, section 4: AdamW, 5,000 steps of 4
# rows, a rate of 0.005 times batch and devices) in units of Stable Diffusion 1.5's vocabulary, whose RMS is 0.0139.
_PUBLISHED = replace(
    OBJECT,
    steps=5000,
    rows=4,
    learning_rate=1.44,
    final_learning_rate=1.0,
    schedule=Schedule.CONSTANT,
    stratified=False,
    weight_decay=0.01,
)
_KIND_RECIPES: Mapping[int, str] = {
    registry_resources.CONCEPT_KIND_UNSPECIFIED: "object",
    registry_resources.CONCEPT_KIND_OBJECT: "object",
    registry_resources.CONCEPT_KIND_STYLE: "style",
    registry_resources.CONCEPT_KIND_FACE: "face",
}


def name_of(kind: int) -> str:
    """The name of the default recipe of a kind of concept."""
    return _KIND_RECIPES[kind]


def _of_each_kind(usual: Recipe) -> Mapping[str, Recipe]:
    """One recipe for each kind, with equal numbers: the kinds differ in templates and start, and no measurement
    supports different numbers."""
    return {name: replace(usual, name=name) for name in sorted(set(_KIND_RECIPES.values()))}


_FALLBACK = _of_each_kind(_PUBLISHED)
_RECIPES: Mapping[str, Mapping[str, Recipe]] = {"miniature": _of_each_kind(OBJECT)}


def recipes(family: str) -> Mapping[str, Recipe]:
    """The recipes for base models of `family`, by name."""
    return _RECIPES.get(family, _FALLBACK)


def from_message(message: resources_pb2.Recipe, kind: int, family: str) -> Recipe:
    """The complete recipe of `message`. Unset fields are taken from the recipe that it names, or else from the default
    of the `kind` of concept.

    Raises KeyError for an unknown name and ValueError for an unknown schedule; validation refuses both before.
    """
    base = recipes(family)[message.name or name_of(kind)]
    set_fields = {field.name for field, _ in message.ListFields()}  # includes optional fields that are set to 0
    overrides: dict[str, Any] = {field: getattr(message, field) for field in _OPTIONAL if field in set_fields}
    if message.schedule:
        overrides["schedule"] = Schedule(message.schedule)
    if message.timesteps:
        overrides["stratified"] = message.timesteps == _Message.TIMESTEPS_STRATIFIED
    if message.norm:
        overrides["hold_norm"] = message.norm == _Message.NORM_VOCABULARY
    return replace(base, **overrides)


# Minimum and maximum of each number.
RANGES: Mapping[str, tuple[float, float]] = {
    "steps": (1, 10_000),
    "rows": (1, 64),
    "learning_rate": (0, 10),
    "final_learning_rate": (0, 1),
    "first_timestep": (0, GREATEST_TIMESTEP),
    "last_timestep": (0, GREATEST_TIMESTEP),
    "min_snr_gamma": (0, 1000),
    "start_weight": (0, 1000),
    "weight_decay": (0, 1),
    "clip_norm": (0, 1000),
}
_OPTIONAL = (*RANGES, "flips", "progressive", "early_stopping")


def to_json(recipe: Recipe, start: resources_pb2.Start, chosen: str = "") -> str:
    """The recipe as protobuf's JSON, with the job's start under `start`; for a version's provenance. `chosen` is the
    start that was chosen, empty if there was no choice."""
    fields = MessageToDict(recipe.message(), preserving_proto_field_name=True)
    start_fields = MessageToDict(start, preserving_proto_field_name=True)
    return dumps(fields | {"start": start_fields | ({"chosen": chosen} if chosen else {})}, sort_keys=True)
