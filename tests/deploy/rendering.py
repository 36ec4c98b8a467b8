"""Manifests as a cluster gets them, and helpers to read them."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBECTL = Path(sys.executable).parent / "kubectl"

Object = Mapping[str, Any]

FOLDERS = sorted(
    str(file.parent.relative_to(DEPLOY))
    for pattern in ("base", "overlays/*", "tests/*")
    for file in DEPLOY.glob(f"{pattern}/kustomization.yaml")
)


@cache
def render(folder: str) -> tuple[Object, ...]:
    """The objects of deploy/FOLDER, by `kubectl kustomize`."""
    done = subprocess.run([KUBECTL, "kustomize", DEPLOY / folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # warnings: deprecated fields, patches that hit nothing
    return tuple(document for document in yaml.safe_load_all(done.stdout) if document)


def of_kind(objects: tuple[Object, ...], *kinds: str) -> list[Object]:
    return [item for item in objects if item["kind"] in kinds]


@dataclass(frozen=True, kw_only=True)
class Container:
    """A container of a workload, and its pod."""

    where: str
    workload: Object
    pod: Object
    spec: Object
    init: bool

    @property
    def server(self) -> bool:
        """Whether it is a server or a worker of ours: both serve health and metrics."""
        return not self.init and self.spec["name"] in ("registry", "trainer", "worker", "generation")


def workloads(objects: tuple[Object, ...]) -> list[Object]:
    return of_kind(objects, "Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")


def template(workload: Object) -> Object:
    """The template of the pods of a workload."""
    spec: Object = workload["spec"]
    made: Object = (spec["jobTemplate"]["spec"] if workload["kind"] == "CronJob" else spec)["template"]
    return made


def containers(folder: str) -> Iterator[Container]:
    for workload in workloads(render(folder)):
        pod = template(workload)["spec"]
        for key in ("initContainers", "containers"):
            for spec in pod.get(key, ()):
                where = f"{folder}: {workload['metadata']['name']}/{spec['name']}"
                yield Container(where=where, workload=workload, pod=pod, spec=spec, init=key == "initContainers")


def environment(folder: str, container: Object) -> dict[str, str]:
    """The variables of the container; the value of a secret is written `secret:NAME/KEY`."""
    maps = {item["metadata"]["name"]: item.get("data", {}) for item in of_kind(render(folder), "ConfigMap")}
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found |= maps[source["configMapRef"]["name"]]
    for variable in container.get("env", ()):
        if "value" in variable:
            found[variable["name"]] = variable["value"]
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            found[variable["name"]] = f"secret:{reference['name']}/{reference['key']}"
    return found


def files(pod: Object, container: Object) -> dict[str, tuple[str, str]]:
    """The files of mounted secrets in a container: path -> (secret, key). Without items, all keys: `PATH/*`."""
    secrets = {volume["name"]: volume["secret"] for volume in pod.get("volumes", ()) if "secret" in volume}
    found = {}
    for mount in container.get("volumeMounts", ()):
        if mount["name"] in secrets:
            secret = secrets[mount["name"]]
            if "items" not in secret:
                found[f"{mount['mountPath']}/*"] = (secret["secretName"], "*")
            for item in secret.get("items", ()):
                found[f"{mount['mountPath']}/{item['path']}"] = (secret["secretName"], item["key"])
    return found
