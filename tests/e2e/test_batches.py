"""`pseudoword batch` on the command line."""

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Run


def test_batch_is_created_watched_listed_and_cancelled(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sentences.txt").write_text("a photo of a dog\n\na sketch of a cat\n")
    how = ["--prompts", "sentences.txt", "--seeds", "2", "--steps", "2"]
    dry = run("batch", "create", *how, "--dry-run")
    assert (dry.returncode, dry.stdout) == (0, "4 pictures\n")
    made = run("batch", "create", *how, "--json")
    assert made.returncode == 0, made.stderr
    name = json.loads(made.stdout)["name"]
    watched = run("batch", "watch", name.rpartition("/")[2])
    assert watched.returncode == 0, watched.stderr
    assert "succeeded, 4 of 4 pictures" in watched.stdout
    shown = json.loads(run("batch", "show", name, "--json").stdout)
    manifest = Path(shown["manifest_uri"].removeprefix("file://"))
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert [line["text"] for line in lines] == ["a photo of a dog"] * 2 + ["a sketch of a cat"] * 2
    assert all((manifest.parent / line["file_name"]).stat().st_size == line["size_bytes"] for line in lines)
    listed = run("batch", "list", "--filter", "state = SUCCEEDED")
    assert name.rpartition("/")[2] in listed.stdout
    again = run("batch", "cancel", name)
    assert again.returncode == 1
    assert "is SUCCEEDED" in again.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_prompts_are_read_in_the_encodings_of_text_editors(run: Run, tmp_path: Path, encoding: str) -> None:
    (tmp_path / "prompts.txt").write_bytes("a dög\r\na cat\r\n".encode(encoding))
    made = run("batch", "create", "--prompts", "prompts.txt", "--dry-run", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["prompts"] == ["a dög", "a cat"]


def test_prompts_that_are_no_text_are_refused_by_name(run: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes("a dög".encode("latin-1"))
    refused = run("batch", "create", "--prompts", "prompts.txt", "--dry-run")
    assert refused.returncode == 2
    assert "prompts.txt is not text in UTF-8 (byte 3)" in refused.stderr


def test_batch_with_blanks_and_errors_of_the_command(run: Run) -> None:
    filled = run("batch", "create", "a {a} {b}", "--fill", "a=red|blue", "--fill", "b=dog|cat|toy", "--dry-run")
    assert filled.stdout == "6 pictures\n"
    wrong = run("batch", "create", "a {a} dog", "--fill", "b=dog")
    assert wrong.returncode == 1
    assert "batch.blanks" in wrong.stderr
    assert run("batch", "create").returncode == 2
    assert run("batch", "show", "nothing").returncode == 1
