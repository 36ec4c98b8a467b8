"""The documentation is true where a program can tell: reasons, paths, links, and the tree of folders."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_FILES = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
_FOLDERS = {file.split("/")[0] for file in _FILES if "/" in file}
# The changelog names paths of its own time.
_PAGES = [file for file in _FILES if file.endswith(".md") and file != "CHANGELOG.md" and not file.startswith("tests/")]
_SOURCES = ("clients/python/", "diffusion/", "registry/", "rpc/", "service/", "standalone/", "storage/", "trainer/")
_REASON = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
# A path in backticks: a tracked folder and what lies below it, without placeholders.
_PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]*)`")
_LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)")


def test_troubleshooting_has_a_row_for_each_reason_of_the_code_and_no_other() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
    explained = set(re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE))
    used = set(_reasons())
    assert sorted(used - explained) == [], "not in docs/troubleshooting.md"
    assert sorted(explained - used) == [], "in docs/troubleshooting.md only"


@pytest.mark.parametrize("page", _PAGES)
def test_paths_and_links_of_a_page_exist(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    named = {path for path in _PATH.findall(text) if path.split("/")[0] in _FOLDERS and not path.startswith(".cache/")}
    linked = {(ROOT / page).parent / link for link in _LINK.findall(text)}
    assert sorted(path for path in named if not (ROOT / path).exists()) == []
    assert sorted(str(path) for path in linked if not path.exists()) == []


def test_readme_tree_names_the_folders_that_exist() -> None:
    tree = (ROOT / "README.md").read_text("utf-8").split("## What is where\n", 1)[1].split("```")[1]
    shown = re.findall(r"^([\w.-]+)/\s", tree, re.MULTILINE)
    assert sorted(shown) == sorted(folder for folder in _FOLDERS if not folder.startswith("."))


def _reasons() -> Iterator[str]:
    """Every reason that servers and clients can answer with, as the sources write them."""
    for file in _FILES:
        if file.startswith("clients/go/") and file.endswith(".go") and not file.endswith("_test.go"):
            yield from re.findall(r'\.Reason = "([A-Z_]+)"', (ROOT / file).read_text("utf-8"))
        elif file.startswith(_SOURCES) and file.endswith(".py") and "_pb2" not in file:
            for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8"))):
                yield from _of(node)


def _of(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.keyword(arg="reason", value=value):
            yield from _texts(value)
        case ast.Call(func=ast.Name(id="TensorsInvalid"), args=[value, *_]):
            yield from _texts(value)
        case ast.Assign(targets=[target], value=value) | ast.AnnAssign(target=target, value=ast.expr() as value):
            yield from _assigned(target, value)
        case ast.For(target=target, iter=ast.Tuple(elts=values) | ast.List(elts=values)):
            for value in values:
                yield from _assigned(target, value)


def _assigned(target: ast.expr, value: ast.expr) -> Iterator[str]:
    """What `reason` gets in an assignment, alone or as one of several names."""
    match target, value:
        case ((ast.Name(id="reason") | ast.Attribute(attr="reason")), _):
            yield from _texts(value)
        case ast.Tuple(elts=targets), ast.Tuple(elts=values) if len(targets) == len(values):
            for one, given in zip(targets, values, strict=True):
                yield from _assigned(one, given)


def _texts(value: ast.expr) -> Iterator[str]:
    for node in ast.walk(value):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _REASON.fullmatch(node.value):
            yield node.value
