"""The tree and the links of the README are right, and every part of the contract is implemented."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
_PACKAGES = ("registry", "trainer", "service", "rpc", "diffusion", "storage")


def section(title: str) -> str:
    return README.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_tree_shows_exactly_the_tracked_folders() -> None:
    shown = set(re.findall(r"^([a-z_]+)/ ", section("What is where"), re.MULTILINE))
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = {file.split("/")[0] for file in files if "/" in file and not file.startswith(".")}
    assert shown == folders


def test_links_lead_to_existing_files() -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_no_part_is_unimplemented() -> None:
    """Parts are the quoted keys of `unbuilt` tables and the `part` of every Unimplemented in the code."""
    found: set[str] = set()
    for package in _PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            text = file.read_text("utf-8")
            found.update(re.findall(r'metadata=\{"part": "([^"]+)"\}', text))
            for table in re.findall(r"unbuilt = \{(.*?)\n    \}", text, re.DOTALL):
                found.update(re.findall(r'^\s*"([^"]+)":', table, re.MULTILINE))
    found.discard("...")
    assert found == set()
