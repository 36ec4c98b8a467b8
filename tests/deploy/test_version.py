"""One version: files that cannot read it from the client's package name the same version."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from pseudoword import __version__

ROOT = Path(__file__).parents[2]
_OURS = ("registry", "trainer", "generation")
_KUSTOMIZATIONS = sorted((ROOT / "deploy").rglob("kustomization.yaml"))
_TEXTS = [ROOT / "deploy" / "README.md", *sorted((ROOT / "deploy" / "containers").glob("*.Containerfile"))]


def test_both_distributions_have_the_version_of_the_package() -> None:
    assert {version("pseudoword"), version("pseudoword-server")} == {__version__}


def test_changelog_and_readme_name_the_version() -> None:
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert __version__ in headings
    assert f"Version {__version__}." in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("path", _KUSTOMIZATIONS, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_manifests_take_the_images_of_the_version(path: Path) -> None:
    images = yaml.safe_load(path.read_text("utf-8")).get("images", [])
    tags = {
        image["newTag"] for image in images if image["name"].rpartition("/")[2].removeprefix("pseudoword-") in _OURS
    }
    assert tags <= {__version__}


@pytest.mark.parametrize("path", _TEXTS, ids=lambda path: path.name)
def test_build_commands_tag_the_version(path: Path) -> None:
    names = "|".join((*_OURS, r"\$name"))
    tags = re.findall(rf"-t pseudoword/(?:{names}):([^\s\\]+)", path.read_text("utf-8"))
    assert set(tags) <= {__version__}
