"""Records of results: the Version of a training job, the Evaluation of an evaluation."""

from collections.abc import Sequence
from datetime import timedelta
from importlib.metadata import version as installed

import torch
from pseudoword.names import PictureName
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1 import resources_pb2

from trainer.evaluation.measurement import Measurement
from trainer.evaluation.plan import GUIDANCE, LOSS_ROWS, STEPS
from trainer.training.recipe import Recipe, to_json
from trainer.training.run import Learned
from trainer.training.schedule import StopReason

MAX_POINTS = 1_000
_MAX_EVALUATOR = 200  # characters; the registry's limit
_PROGRAMS = ("pseudoword", "diffusers", "transformers")


def version_of(
    job: resources_pb2.Job, recipe: Recipe, learned: Learned, training_time: timedelta
) -> registry_resources.Version:
    """The Version that a training job publishes: its base model and provenance."""
    version = registry_resources.Version(
        base_model=job.base_model,
        description=job.description,
        labels=job.labels,
        provenance=registry_resources.Provenance(
            origin=registry_resources.Provenance.ORIGIN_LEARNED,
            job=job.name,
            recipe_json=to_json(recipe, job.start, learned.chosen),
            seed=job.seed,
            steps=len(learned.losses),
            stop_reason=learned.stop_reason,
            at_once=learned.stop_reason == StopReason.AT_ONCE,
            loss_curve=curve(learned.losses),
            parents=[job.start.version] if job.start.version else [],
            picture_digests=[PictureName.parse(example.picture).picture for example in job.examples],
            software={program: installed(program) for program in _PROGRAMS} | {"torch": torch.__version__},
        ),
    )
    version.provenance.training_time.FromTimedelta(training_time)
    for encoder in version.base_model.encoders:
        encoder.vectors = job.vectors
    return version


def evaluation_of(job: resources_pb2.Job, measurement: Measurement) -> registry_resources.Evaluation:
    """The Evaluation that an evaluation job writes: figures, evaluator, and the pictures used."""
    pictures = ", ".join(PictureName.parse(example.picture).picture[:12] for example in job.examples)
    note = f"{job.name}: loss over {LOSS_ROWS} draws of the pictures {pictures}"
    if measurement.judges:
        note += f"; drawn by ddim in {STEPS} steps, guidance {GUIDANCE:g}"
    evaluator = "; ".join((f"pseudoword {installed('pseudoword')}", *measurement.judges))
    return registry_resources.Evaluation(
        evaluator=evaluator[:_MAX_EVALUATOR],
        metrics=measurement.figures,
        samples=measurement.samples,
        seed=job.seed,
        note=note,
    )


def curve(losses: Sequence[float]) -> list[registry_resources.LossPoint]:
    """The losses by step, thinned evenly to MAX_POINTS; the first and the last are kept."""
    count = min(len(losses), MAX_POINTS)
    indices = [index * (len(losses) - 1) // max(1, count - 1) for index in range(count)]
    return [registry_resources.LossPoint(step=index + 1, loss=losses[index]) for index in indices]
