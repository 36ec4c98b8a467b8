"""The job that the trainer makes of its own accord after a version was published: to evaluate that. Pure."""

from typing import Any

Row = dict[str, Any]

LAST_PRIORITY = -9
"""After everything that somebody asked for."""
# Of a job that trains, what holds for the evaluation of its version too; of the recipe only the name.
_KEPT = ("concept", "kind", "examples", "vectors", "base_model")


def name_of(job: str) -> str:
    """The resource name of what follows a job."""
    return f"{job}-evaluation"


def follow_up(job: Row, version: str) -> Row:
    """The evaluation of the `version` that a job has published, as the job's client could have asked for it: the fields
    of its row that follow from the job's."""
    spec = {key: job["spec"][key] for key in _KEPT if key in job["spec"]}
    spec |= {"evaluates": version, "priority": LAST_PRIORITY}
    if "recipe" in job["spec"]:
        spec["recipe"] = {"name": job["spec"]["recipe"]["name"]}
    return {
        **{key: job[key] for key in ("tenant", "creator", "principal")},
        "name": name_of(job["name"]),
        "priority": LAST_PRIORITY,
        "spec": spec,
    }
