"""The evaluation that the trainer creates by itself for a version that a job has published. Pure."""

from typing import Any

Row = dict[str, Any]

LAST_PRIORITY = -9
"""The lowest priority: follow-ups run after the jobs that clients have created."""
# Fields of a training job that its version's evaluation takes over; of the recipe it takes only the name.
_TAKEN_OVER = ("concept", "kind", "examples", "vectors", "base_model")


def name_of(job: str) -> str:
    """The resource name of a job's follow-up."""
    return f"{job}-evaluation"


def follow_up(job: Row, version: str) -> Row:
    """The evaluation of the `version` that a job has published, as the job's client could have created it: the fields
    of its row that follow from the job's row."""
    spec = {key: job["spec"][key] for key in _TAKEN_OVER if key in job["spec"]}
    spec |= {"evaluates": version, "priority": LAST_PRIORITY}
    if "recipe" in job["spec"]:
        spec["recipe"] = {"name": job["spec"]["recipe"]["name"]}
    return {
        **{key: job[key] for key in ("tenant", "creator", "principal")},
        "name": name_of(job["name"]),
        "priority": LAST_PRIORITY,
        "spec": spec,
    }
