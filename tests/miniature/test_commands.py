"""The command that draws files, and the example pictures."""

import runpy
from pathlib import Path

import numpy as np
import numpy.typing as npt
from click.testing import CliRunner
from PIL import Image

from miniature.__main__ import main

ROOT = Path(__file__).parents[2]


def pixels(file: Path) -> npt.NDArray[np.int16]:
    with Image.open(file) as image:
        return np.asarray(image, np.int16)


def test_example_pictures_equal_those_of_their_script(tmp_path: Path) -> None:
    drawn = runpy.run_path(str(ROOT / "examples" / "draw_rex.py"))["draw"](tmp_path)
    assert [file.name for file in drawn] == ["1.png", "2.png", "3.png", "4.png"]
    for file in drawn:
        committed = pixels(ROOT / "examples" / "rex" / file.name)
        assert committed.shape == (64, 64, 3)
        # Another version of Pillow may round differently.
        assert np.abs(pixels(file) - committed).max() <= 2


def test_draw_is_determined_by_its_seed_and_prints_a_caption(tmp_path: Path) -> None:
    options = ["draw", "--kind", "owl", "--colour", "pink", "--pattern", "dotted", "--scene", "beach", "--seed", "3"]
    files = [tmp_path / name for name in ("one.png", "two.png", "other.png")]
    for file, seed in zip(files, ("3", "3", "4"), strict=True):
        result = CliRunner().invoke(main, [*options[:-1], seed, "-o", str(file)])
        assert result.exit_code == 0, result.output
        assert "owl" in result.output or "toy" in result.output
    one, two, other = (file.read_bytes() for file in files)
    assert one == two != other
    assert pixels(files[0]).shape == (64, 64, 3)


def test_draw_rejects_impossible_options(tmp_path: Path) -> None:
    for options, text in (
        (["--kind", "dog"], "'dog' is not one of"),
        (["--count", "4"], "not in the range"),
        (["--count", "2", "--side", "left"], "only a single toy stands on a side"),
    ):
        result = CliRunner().invoke(main, ["draw", *options, "-o", str(tmp_path / "x.png")])
        assert result.exit_code == 2
        assert text in result.output
        assert not (tmp_path / "x.png").exists()
