"""The variables of the manifests are settings of the servers."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pseudoword.addresses import is_loopback
from pydantic import BaseModel

from registry.settings import RegistrySettings
from rpc.settings import Settings
from service.settings import GenerationSettings
from tests.deploy.rendering import DEPLOY, FOLDERS, ROOT, Container, containers, environment, files
from trainer.settings import TrainerSettings

MODULES = {"registry": "registry", "trainer": "trainer", "worker": "trainer", "generation": "service"}
SETTINGS: dict[str, type[Settings]] = {
    "registry": RegistrySettings,
    "trainer": TrainerSettings,
    "worker": TrainerSettings,
    "generation": GenerationSettings,
}

every_folder = pytest.mark.parametrize("folder", FOLDERS)


def variables(table: type[BaseModel], prefix: str = "PSEUDOWORD_") -> Iterator[str]:
    """Every environment variable that a table of settings reads."""
    for name, field in table.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from variables(kind, f"{prefix}{name.upper()}__")
        else:
            yield prefix + name.upper()


def servers(folder: str) -> list[Container]:
    return [found for found in containers(folder) if found.server]


def loaded(folder: str, found: Container, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings as the server of the container reads them."""
    with monkeypatch.context() as patch:
        for name, value in environment(folder, found.spec).items():
            patch.setenv(name, value)
        return SETTINGS[found.spec["name"]].load(MODULES[found.spec["name"]], [])


@every_folder
def test_every_variable_is_a_setting_of_its_server(folder: str) -> None:
    for found in containers(folder):
        if found.spec["image"].startswith(("pseudoword/minio:", "pseudoword/nats:")):
            continue
        known = set(variables(SETTINGS[found.spec["image"].split("/")[1].split(":")[0]]))
        used = environment(folder, found.spec)
        assert used and set(used) <= known, f"{found.where}: {sorted(set(used) - known)}"


@every_folder
def test_servers_accept_the_values(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for found in servers(folder):
        settings = loaded(folder, found, monkeypatch)
        ports = {port["name"]: str(port["containerPort"]) for port in found.spec["ports"]}
        server = settings.server
        listened = {"grpc": server.listen, "health": server.health_listen, "metrics": server.metrics_listen}
        assert {name: address.rpartition(":")[2] for name, address in listened.items()} == ports, found.where
        assert not any(is_loopback(address) for address in listened.values()), found.where
        assert server.token_file is not None and server.tls_cert is not None, found.where
        sleep = found.spec["lifecycle"]["preStop"]["sleep"]["seconds"]
        grace = found.pod["terminationGracePeriodSeconds"]
        assert grace >= sleep + server.drain_s + 10, f"{found.where}: killed while it drains"


@every_folder
def test_files_that_settings_name_are_mounted(folder: str) -> None:
    for found in containers(folder):
        mounted = files(found.pod, found.spec)
        folders = {path.removesuffix("/*") for path in mounted if path.endswith("/*")}
        writable = {mount["mountPath"] for mount in found.spec["volumeMounts"] if not mount.get("readOnly")}
        for name, value in environment(folder, found.spec).items():
            if value.startswith("/etc/"):
                assert value in mounted or str(Path(value).parent) in folders, f"{found.where}: {name}={value}"
            elif value.startswith("/") and (found.server or found.spec["name"] == "minio"):
                assert any(Path(value).is_relative_to(place) for place in writable), f"{found.where}: {name}={value}"


@every_folder
def test_peers_and_stores_are_services_of_this_kustomization(folder: str) -> None:
    names = {found.workload["metadata"]["name"] for found in containers(folder)}
    for found in servers(folder):
        values = environment(folder, found.spec)
        peer = values.get("PSEUDOWORD_REGISTRY__ADDRESS")
        assert (peer == "dns:///registry:7361") == (found.spec["name"] != "registry"), found.where
        endpoint = values.get("PSEUDOWORD_S3__ENDPOINT", "")
        assert endpoint in ("", "minio:9000", "s3.example.com"), found.where
        assert ("minio" in names) or not endpoint.startswith("minio"), found.where
    # Each server has a store of its own; workers share that of the trainer.
    places = {values["PSEUDOWORD_STORE__ADDRESS"] for values in (environment(folder, f.spec) for f in servers(folder))}
    assert len(places) == 3
    assert len({place.rpartition("/")[0] for place in places}) == 1, "make-bucket makes one bucket"


@pytest.mark.parametrize("file", sorted((DEPLOY / "containers").glob("*.Containerfile")), ids=lambda file: file.stem)
def test_containerfiles_pin_versions_user_and_ports(file: Path) -> None:
    text = file.read_text()
    instructions = re.findall(r"^([A-Z]+) (.+)$", text.replace("\\\n", " "), re.MULTILINE)
    last = dict(instructions)
    assert last["USER"] == "10001:10001"
    assert sum(name == "FROM" for name, _ in instructions) == 2, "built in one stage, run from another"
    for name, value in instructions:
        if name in ("FROM", "ARG"):
            assert ":latest" not in value and "latest" not in value
    if file.stem in ("minio", "nats"):
        name = f"{file.stem.upper()}_VERSION"
        version = re.search(rf"^{name} := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert version is not None and f"ARG {name}={version[1]}" in text
        return
    (install,) = (value for name, value in instructions if name == "RUN" and "pip install" in value)
    assert "--constraint constraints.txt" in install
    extras = {"registry": [], "trainer": ["[nats,torch]"], "generation": ["[torch,triton]"]}
    assert re.findall(r"'\.(\[.*?\])'", install) == extras[file.stem]
    module = re.fullmatch(r'\["python", "-m", "(\w+)"\]', last["ENTRYPOINT"])
    assert module is not None and module[1] == MODULES[file.stem]
    assert importlib.util.find_spec(f"{module[1]}.__main__") is not None, f"python -m {module[1]} does not exist"
    port = SETTINGS[file.stem]().server.listen.rpartition(":")[2]
    assert last["EXPOSE"].split() == [port, "8081", "9464"]


def test_image_of_the_registry_has_all_imported_packages() -> None:
    code = "import sys, registry.__main__; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    of_module = packages_distributions()
    imported = {canonicalize_name(name) for module in done.stdout.split() for name in of_module.get(module, ())}
    assert "grpcio" in imported and "minio" in imported
    # grpc, rich and structlog import the first three if they are installed; setuptools loads itself at every start.
    optional = {"grpcio-tools", "attrs", "colorama", "setuptools"}
    assert imported - installed_by("pseudoword-server") - optional == set()
    assert "torch" not in installed_by("pseudoword-server")


def installed_by(distribution: str) -> set[str]:
    """The packages that pip installs for a distribution without extras, including the distribution."""
    found, waiting = set(), [distribution]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        for text in requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return {str(name) for name in found}
