"""The command line: it learns a word from four pictures and draws it; diffusers draws equal pictures."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffusion.spec import BUNDLED
from tests.e2e.conftest import REX, Run

_PICTURES = [str(path) for path in REX]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_word_is_learned_drawn_exported_and_drawn_equally_by_diffusers(run: Run, tmp_path: Path) -> None:
    learned = run("learn", "rex", *_PICTURES, "--init", "toy", "--steps", "12")
    assert learned.returncode == 0, learned.stderr
    assert learned.stdout.startswith("tenants/default/concepts/rex/versions/1")

    for name in ("one.png", "two.png"):
        drawn = run("draw", "a photo of <rex> on the beach", "-o", name, "--seed", "3", "--steps", "8")
        assert drawn.returncode == 0, drawn.stderr
    first, second = ((tmp_path / name).read_bytes() for name in ("one.png", "two.png"))
    assert first == second

    exported = run("export", "rex", "-o", "rex.safetensors")
    assert exported.returncode == 0, exported.stderr
    pipeline: Any = diffusers.StableDiffusionPipeline.from_pretrained(
        str(BUNDLED), dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_textual_inversion(tmp_path, weight_name="rex.safetensors")
    theirs = pipeline(
        "a photo of <rex> on the beach",
        num_inference_steps=8,
        guidance_scale=4.0,
        generator=torch.Generator("cpu").manual_seed(3),
    ).images[0]
    with Image.open(tmp_path / "one.png") as ours:
        assert np.array_equal(np.asarray(theirs), np.asarray(ours))

    redrawn = run("redraw", "one.png", "--json")
    assert redrawn.returncode == 0, redrawn.stderr
    assert lines(redrawn.stdout)[0]["equal"] is True

    imported = run("import", "rex", "rex.safetensors", "--json")
    assert imported.returncode == 0, imported.stderr
    again = run("versions", "rex", "--json")
    two, one = lines(again.stdout)
    assert two["tensors_digest"] == one["tensors_digest"]
    assert two["provenance"]["origin"] == "ORIGIN_IMPORTED"
    assert one["provenance"]["job"].startswith("tenants/default/jobs/")


def test_alias_commands_set_roll_back_and_list(run: Run) -> None:
    for seed in ("1", "2"):
        done = run("learn", "ball", *_PICTURES[:3], "--steps", "1", "--seed", seed, "--json")
        assert done.returncode == 0, done.stderr
    assert run("alias", "set", "ball", "production", "2", "--reason", "better").returncode == 0
    assert run("alias", "set", "ball", "production", "1").returncode == 0
    back = run("alias", "rollback", "ball", "production", "--json")
    assert lines(back.stdout)[0]["version"].endswith("/versions/2")
    history = [
        change["version"][-1] for change in lines(run("alias", "history", "ball", "production", "--json").stdout)
    ]
    assert history == ["2", "1", "2"]
    (words,) = [word for word in lines(run("words", "--json").stdout) if word["name"].endswith("/ball")]
    assert words["aliases"] == {"production": "2"}
    shown = run("show", "ball@1")
    assert "production" not in shown.stdout
    assert "seed 1" in shown.stdout


def test_learning_starts_from_a_version_by_its_short_name(run: Run) -> None:
    learn = ("learn", "slab", _PICTURES[0], "--steps", "1", "--json")
    first = lines(run(*learn).stdout)[-1]["name"]
    grown = run(*learn, "--init-version", "slab@1")
    assert grown.returncode == 0, grown.stderr
    assert lines(grown.stdout)[-1]["provenance"]["parents"] == [first]


def test_job_commands_list_watch_and_reject(run: Run, tmp_path: Path) -> None:
    begun = ("learn", "cube", *_PICTURES[:2], "--init-best", "--steps", "4", "--early-stop", "--json")
    first = run(*begun)
    assert first.returncode == 0, first.stderr
    version = lines(first.stdout)[-1]["name"]
    grown = run("learn", "cube", *_PICTURES[:2], "--init-version", version, "--steps", "1", "--json")
    assert lines(grown.stdout)[-1]["provenance"]["parents"] == [version]
    learned = "concept:cube AND state = SUCCEEDED AND NOT evaluates:versions"
    second, one = lines(run("jobs", "list", "--filter", learned, "--json").stdout)
    assert (one["version"], one["start"]) == (version, {"best_of_vocabulary": True})
    watched = run("jobs", "watch", second["name"], "--previews", "seen")
    assert watched.stdout.startswith(f"{second['name']}  learn <cube>  succeeded  {second['version']}")
    for verb in ("cancel", "retry"):
        refused = run("jobs", verb, one["name"])
        assert refused.returncode == 1
        assert "SUCCEEDED" in refused.stderr
    wrong = run("learn", "cube", _PICTURES[0], "--mask", _PICTURES[0], "--mask", _PICTURES[1])
    assert "2 masks for 1 pictures" in wrong.stderr


def test_learned_style_is_suggested_as_a_style(run: Run) -> None:
    learned = run("learn", "mara", *_PICTURES[:2], "--style", "--steps", "1")
    assert "pseudoword draw 'a cat in the style of <mara>'" in learned.stdout


def test_evaluate_command_prints_figures_and_lists_evaluations(run: Run) -> None:
    learned = run("learn", "ella", *_PICTURES[:2], "--steps", "1")
    assert learned.stdout.splitlines()[-1] == "its evaluation follows: pseudoword show ella@1"
    evaluated = run("evaluate", "ella", *_PICTURES[2:])
    assert evaluated.returncode == 0, evaluated.stderr
    *table, name = evaluated.stdout.splitlines()
    assert {line.split()[0] for line in table} == {"FIGURE", "clip_i", "clip_t", "held_out_loss"}
    # The requested evaluation runs before the automatic one.
    version, *evaluations = lines(run("show", "ella@1", "--json").stdout)
    assert name in {evaluation["name"] for evaluation in evaluations}
    assert "held_out_loss 0.0" in run("show", "ella").stdout
    own, follows, learns = run("jobs", "list", "--filter", "concept:ella").stdout.splitlines()
    assert own.endswith(f"  evaluate <ella@1>  succeeded  {name}")
    assert follows.startswith(f"{version['provenance']['job']}-evaluation  evaluate <ella@1>  ")
    assert learns.endswith(f"  learn <ella>  succeeded  {version['name']}")
    refused = run("evaluate", "ella@7", _PICTURES[0])
    assert refused.returncode == 1
    assert "no version 7" in refused.stderr


def test_draw_count_writes_single_files_and_a_contact_sheet(run: Run, tmp_path: Path) -> None:
    done = run("draw", "a dog", "-o", "dog.png", "--count", "3", "--steps", "2", "--fast")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["dog-1.png", "dog-2.png", "dog-3.png", "dog.png"]
    with Image.open(tmp_path / "dog-1.png") as picture, Image.open(tmp_path / "dog.png") as sheet:
        assert picture.size == (64, 64)
        assert sheet.width > 3 * 64


def test_redraw_compares_with_the_record_of_the_picture(run: Run, tmp_path: Path) -> None:
    start = ("--from", _PICTURES[0])
    drawn = run("draw", "a (red:1.3) dog", "-o", "a.png", *start, "--strength", "0.5", "--steps", "4", "--weights")
    assert drawn.returncode == 0, drawn.stderr
    assert run("redraw", "a.png", *start).stdout == "equal\n"
    without = run("redraw", "a.png")
    assert without.returncode == 2
    assert "--from" in without.stderr
    with Image.open(tmp_path / "a.png") as picture:
        text = picture.text  # type: ignore[attr-defined]
        picture.putpixel((1, 1), (9, 9, 9))
        kept = PngInfo()
        kept.add_text("pseudoword", text["pseudoword"])
        picture.save(tmp_path / "b.png", pnginfo=kept)
    changed = run("redraw", "b.png", *start)
    assert changed.returncode == 1
    assert changed.stdout.startswith("different")
    assert "has no record of pseudoword" in run("redraw", _PICTURES[0]).stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("draw", "<nothing>", "-o", "x.png"), "<nothing>"),
        (("draw", "a dog", "-o", "x.gif"), ".gif"),
        (("draw", "a dog", "-o", "x.png", "--scheduler", "magic"), "magic"),
        (("learn", "Rex", _PICTURES[0]), "Rex"),
        (("learn", "a" * 64, _PICTURES[0]), "{0,62}"),
        (("learn", "rex"), "PICTURE"),
        (("show", "rex@77"), "rex"),
        (("alias", "set", "rex", "latest", "1"), "latest"),
        (("versions", "unknown-word"), "unknown-word"),
        (("words", "--registry", "127.0.0.1:1"), "pseudoword up"),
    ],
)
def test_failing_command_names_the_problem(run: Run, tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    done = run(*arguments)
    assert done.returncode != 0
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.png").exists()


def test_failure_is_printed_as_json(run: Run) -> None:
    done = run("draw", "<nothing>", "-o", "x.png", "--json")
    assert done.returncode == 1
    assert done.stdout == ""
    assert json.loads(done.stderr)["error"]["reason"] == "WORD_UNKNOWN"


@pytest.mark.parametrize(
    "command", ["", "learn", "evaluate", "draw", "words", "watch", "alias", "import", "up", "demo"]
)
def test_help_shows_the_usage(run: Run, command: str) -> None:
    done = run(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage: pseudoword" in done.stdout
