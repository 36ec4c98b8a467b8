"""Every combination renders, matches the schemas of Kubernetes, and keeps rules that schemas cannot express."""

import json
import re
from functools import cache

import kubernetes_validate
import pytest
from pseudoword import __version__

from tests.deploy.rendering import DEPLOY, FOLDERS, ROOT, Object, containers, of_kind, render, template, workloads

# The oldest version that knows every field used (preStop's sleep, matchLabelKeys), and the newest.
KUBERNETES = ("1.30", "1.37")
# Kinds of custom resource definitions that the manifests use: none yet.
CUSTOM_KINDS: frozenset[str] = frozenset()

every_folder = pytest.mark.parametrize("folder", FOLDERS)


def test_every_component_is_part_of_a_rendered_folder() -> None:
    assert {"base", "overlays/dev", "overlays/prod"} <= set(FOLDERS)
    components = {path.name for path in (DEPLOY / "components").iterdir()}
    rendered = " ".join((DEPLOY / folder / "kustomization.yaml").read_text() for folder in FOLDERS)
    assert {name for name in components if f"components/{name}" not in rendered} == set()


@every_folder
@pytest.mark.parametrize("version", KUBERNETES)
def test_objects_match_the_schemas_of_kubernetes(folder: str, version: str) -> None:
    for item in render(folder):
        if item["kind"] not in CUSTOM_KINDS:
            check(json.dumps(item), version)


@cache
def check(item: str, version: str) -> None:
    # An unknown kind raises SchemaNotFoundError; the command line only warns.
    assert kubernetes_validate.validate(json.loads(item), version, strict=True).startswith(version)


def test_validator_finds_wrong_fields_and_kinds() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"prots": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, KUBERNETES[0], strict=True)
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        kubernetes_validate.validate({**service, "kind": "Servise"}, KUBERNETES[0], strict=True)


@every_folder
def test_all_objects_are_in_one_restricted_namespace(folder: str) -> None:
    (namespace,) = of_kind(render(folder), "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for item in render(folder):
        if item is not namespace:
            assert item["metadata"]["namespace"] == namespace["metadata"]["name"], item["metadata"]["name"]


@every_folder
def test_pod_security_is_restricted(folder: str) -> None:
    for found in containers(folder):
        pod, own = found.pod["securityContext"], found.spec["securityContext"]
        assert pod["runAsNonRoot"] is True and pod["runAsUser"] > 0, found.where
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, found.where
        assert own["allowPrivilegeEscalation"] is False, found.where
        assert own["capabilities"] == {"drop": ["ALL"]}, found.where
        assert own["readOnlyRootFilesystem"] is True, found.where
        assert "privileged" not in own and "runAsUser" not in own, found.where
        assert found.pod["automountServiceAccountToken"] is False, found.where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(found.pod), found.where
        for volume in found.pod["volumes"]:
            assert set(volume) <= {"name", "secret", "configMap", "emptyDir"}, found.where
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"], found.where


@every_folder
def test_containers_have_requests_and_memory_limits(folder: str) -> None:
    for found in containers(folder):
        resources = found.spec["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"]), found.where
        assert "memory" in resources["limits"], found.where


@every_folder
def test_images_are_pinned_to_this_version(folder: str) -> None:
    pins = dict(re.findall(r"^(MINIO|NATS)_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for found in containers(folder):
        name, _, tag = found.spec["image"].partition(":")
        if name == "pseudoword/minio":
            assert f"-{tag}-" in pins["MINIO"], f"{found.where}: {tag} is not the version that the tests run against"
        elif name == "pseudoword/nats":
            assert f"v{tag}" == pins["NATS"], f"{found.where}: {tag} is not the version that the tests run against"
        else:
            assert tag == __version__, found.where


@every_folder
def test_servers_are_probed_by_name_and_have_time_to_drain(folder: str) -> None:
    servers = [found for found in containers(folder) if found.server]
    workers = {"worker"} if "workers" in folder else set()
    assert {found.spec["name"] for found in servers} == {"registry", "trainer", "generation"} | workers
    for found in servers:
        ports = {port["name"]: port["containerPort"] for port in found.spec["ports"]}
        assert set(ports) == {"grpc", "health", "metrics"}, found.where
        for probe, service in (("startup", "startup"), ("readiness", "readiness"), ("liveness", "liveness")):
            assert found.spec[f"{probe}Probe"]["grpc"] == {"port": ports["health"], "service": service}, found.where
        assert found.spec["lifecycle"]["preStop"]["sleep"]["seconds"] >= 5, found.where


@every_folder
def test_config_maps_and_volumes_exist_and_are_used(folder: str) -> None:
    objects = render(folder)
    maps = {item["metadata"]["name"] for item in of_kind(objects, "ConfigMap")}
    for found in containers(folder):
        used = {source["configMapRef"]["name"] for source in found.spec.get("envFrom", ())}
        used |= {volume["configMap"]["name"] for volume in found.pod["volumes"] if "configMap" in volume}
        assert used <= maps, found.where
        volumes = {volume["name"] for volume in found.pod["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in found.workload["spec"].get("volumeClaimTemplates", ())}
        mounted = {mount["name"] for mount in found.spec["volumeMounts"]}
        assert mounted <= volumes, found.where
    used_maps = {
        name
        for found in containers(folder)
        for name in (
            *(source["configMapRef"]["name"] for source in found.spec.get("envFrom", ())),
            *(volume["configMap"]["name"] for volume in found.pod["volumes"] if "configMap" in volume),
        )
    }
    assert {name for name in maps - used_maps if not name.startswith("prometheus-")} == set(), "unused ConfigMaps"


@every_folder
def test_selectors_match_pods(folder: str) -> None:
    objects = render(folder)
    labels = [template(item)["metadata"]["labels"] for item in workloads(objects)]
    for item in of_kind(objects, "Service"):
        selected = [pod for pod in workloads(objects) if item["spec"]["selector"].items() <= _labels(pod).items()]
        assert len(selected) == 1, item["metadata"]["name"]
        names = {port["name"] for spec in template(selected[0])["spec"]["containers"] for port in spec["ports"]}
        assert {port["targetPort"] for port in item["spec"]["ports"]} <= names
    for item in of_kind(objects, "PodDisruptionBudget"):
        assert item["spec"]["maxUnavailable"] == 1
        assert any(item["spec"]["selector"]["matchLabels"].items() <= pod.items() for pod in labels)
    for item in of_kind(objects, "NetworkPolicy"):
        wanted = item["spec"]["podSelector"].get("matchLabels", {})
        assert any(wanted.items() <= pod.items() for pod in labels), item["metadata"]["name"]


@every_folder
def test_every_server_has_a_disruption_budget_and_is_spread(folder: str) -> None:
    budgets = {item["metadata"]["name"] for item in of_kind(render(folder), "PodDisruptionBudget")}
    for item in of_kind(render(folder), "Deployment"):
        assert item["metadata"]["name"] in budgets
        (spread,) = item["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert spread["matchLabelKeys"] == ["pod-template-hash"]


@pytest.mark.parametrize(
    ("folder", "users"),
    [
        ("tests/gpu", {"trainer", "generation"}),
        ("tests/workers+gpu+monitoring+network-policies", {"worker", "generation"}),
    ],
)
def test_only_servers_that_use_gpus_request_them(folder: str, users: set[str]) -> None:
    for found in containers(folder):
        wants = found.spec["resources"]["limits"].get("nvidia.com/gpu")
        assert wants == ("1" if found.spec["name"] in users else None), found.where
        if wants:
            (toleration,) = found.pod["tolerations"]
            assert toleration == {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
            assert "nodeAffinity" in found.pod["affinity"]


def test_network_policies_allow_only_the_needed_connections() -> None:
    policies = {
        item["metadata"]["name"]: item["spec"] for item in of_kind(render("tests/network-policies"), "NetworkPolicy")
    }
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}

    def peers(rules: list[dict[str, list[dict[str, dict[str, dict[str, str]]]]]], side: str) -> set[str]:
        return {
            peer["podSelector"]["matchLabels"].get("app.kubernetes.io/name", "client")
            for rule in rules
            for peer in rule[side]
        }

    into = {name: peers(policies[name]["ingress"], "from") for name in ("registry", "trainer", "generation", "minio")}
    out = {name: peers(policies[name].get("egress", []), "to") for name in into}
    assert into == {
        "registry": {"client", "trainer", "worker", "generation"},
        "trainer": {"client"},
        "generation": {"client"},
        "minio": {"registry", "trainer", "worker", "generation", "garbage-collection"},
    }
    # Egress of each server matches the ingress of its peers.
    peers_of_both = {"registry", "minio"}
    assert out == {
        "registry": {"minio"},
        "trainer": peers_of_both | {"nats"},
        "generation": peers_of_both,
        "minio": set(),
    }


def test_workers_and_nats_reach_what_they_need() -> None:
    policies = {item["metadata"]["name"]: item["spec"] for item in of_kind(render("tests/workers"), "NetworkPolicy")}
    assert set(policies) == {"worker", "nats"}
    reached = {
        peer["podSelector"]["matchLabels"].get("app.kubernetes.io/name", "dns")
        for rule in policies["worker"]["egress"]
        for peer in rule["to"]
    }
    assert reached == {"registry", "minio", "nats", "dns"}
    (into,) = policies["nats"]["ingress"]
    assert {peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for peer in into["from"]} == {
        "trainer",
        "worker",
    }
    assert into["ports"] == [{"port": "client"}]
    assert "egress" not in policies["nats"]


def test_trainer_has_several_servers_only_with_separate_workers() -> None:
    (trainer,) = (item for item in workloads(render("tests/workers")) if item["metadata"]["name"] == "trainer")
    assert (trainer["spec"]["replicas"], trainer["spec"]["strategy"]["type"]) == (2, "RollingUpdate")
    (alone,) = (item for item in workloads(render("base")) if item["metadata"]["name"] == "trainer")
    assert (alone["spec"]["replicas"], alone["spec"]["strategy"]["type"]) == (1, "Recreate")


def _labels(workload: Object) -> dict[str, str]:
    labels: dict[str, str] = template(workload)["metadata"]["labels"]
    return labels
