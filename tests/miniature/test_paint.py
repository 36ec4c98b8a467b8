"""Drawings: the same again, and nothing that is asked for goes unseen."""

import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings

from miniature.paint import SIZE, paint
from miniature.world import (
    ACCESSORIES,
    COLOURS,
    KINDS,
    MAX_COUNT,
    PATTERNS,
    SCENES,
    SIDES,
    STYLES,
    Colour,
    Drawing,
    Toy,
    random_colour,
    random_drawing,
    random_toy,
)
from tests.miniature.worlds import drawings, seeds

CAT = Toy(
    kind="cat",
    colour=Colour(name="orange", rgb=(240, 130, 20)),
    second=Colour(name="blue", rgb=(40, 80, 220)),
)
DRAWING = Drawing(toy=CAT, background=Colour(name="grey", rgb=(140, 140, 140)))


def pixels(drawing: Drawing, seed: int = 5) -> npt.NDArray[np.int16]:
    return np.asarray(paint(drawing, np.random.default_rng(seed)), dtype=np.int16)


def assert_all_differ(variants: dict[str, Drawing], *, least: float = 0.005) -> None:
    """Any two of the drawings differ visibly in at least `least` of their pixels."""
    drawn = {name: pixels(drawing) for name, drawing in variants.items()}
    for one, other in combinations(drawn, 2):
        share = (np.abs(drawn[one] - drawn[other]).max(axis=-1) > 24).mean()
        assert share >= least, f"{one} and {other} differ in {share:.2%} of the pixels"


@settings(max_examples=60, deadline=None)
@given(drawings(), seeds)
def test_any_drawing_is_an_rgb_image_and_the_same_again(drawing: Drawing, seed: int) -> None:
    image = paint(drawing, np.random.default_rng(seed))
    assert (image.mode, image.size) == ("RGB", (SIZE, SIZE))
    assert np.asarray(image).dtype == np.uint8
    assert image.tobytes() == paint(drawing, np.random.default_rng(seed)).tobytes()


def test_another_seed_moves_the_toy() -> None:
    assert (pixels(DRAWING, 1) != pixels(DRAWING, 2)).any()


def test_every_kind_looks_different() -> None:
    assert_all_differ({kind: replace(DRAWING, toy=replace(CAT, kind=kind)) for kind in KINDS})


def test_every_pattern_looks_different() -> None:
    assert_all_differ({pattern: replace(DRAWING, toy=replace(CAT, pattern=pattern)) for pattern in PATTERNS})


def test_every_style_looks_different() -> None:
    assert_all_differ({style: replace(DRAWING, style=style) for style in STYLES}, least=0.05)


def test_every_scene_and_none_look_different() -> None:
    assert_all_differ({str(scene): replace(DRAWING, scene=scene) for scene in (None, *SCENES)}, least=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_accessory_is_seen_on_every_kind(kind: str) -> None:
    toy = next(random_toy(np.random.default_rng(2), kind=known, colour="yellow") for known in KINDS if known == kind)
    assert_all_differ(
        {
            str(accessory): replace(DRAWING, toy=replace(toy, pattern="plain"), accessory=accessory)
            for accessory in (None, *ACCESSORIES)
        }
    )


def test_counts_and_sides_look_different() -> None:
    ways = {str(count): replace(DRAWING, count=count) for count in range(1, MAX_COUNT + 1)}
    ways |= {side: replace(DRAWING, side=side) for side in SIDES}
    assert_all_differ(ways, least=0.05)


@pytest.mark.parametrize("proportion", ["eye", "ear", "squash", "period"])
def test_proportions_are_seen(proportion: str) -> None:
    dotted = replace(CAT, pattern="dotted")
    small, large = ({proportion: value} for value in (0.85, 1.15))
    assert_all_differ(
        {
            "small": replace(DRAWING, toy=replace(dotted, **small)),  # type: ignore[arg-type]
            "large": replace(DRAWING, toy=replace(dotted, **large)),  # type: ignore[arg-type]
        }
    )


def test_a_toy_has_its_colour() -> None:
    middle = pixels(replace(DRAWING, toy=replace(CAT, kind="ball")))[34:38, 28:36].reshape(-1, 3).mean(axis=0)
    red, green, blue = middle
    assert red > 180 and 80 < green < 180 and blue < 80


def test_a_shade_is_nearest_to_others_of_its_name() -> None:
    known = [random_colour(np.random.default_rng(seed), name) for name in COLOURS for seed in range(60)]
    table = np.array([colour.rgb for colour in known])
    for name in COLOURS:
        for seed in range(60, 90):
            shade = random_colour(np.random.default_rng(seed), name)
            nearest = known[int(np.linalg.norm(table - shade.rgb, axis=1).argmin())]
            assert nearest.name == name, shade


def test_random_drawings_show_everything_that_there_is() -> None:
    rng = np.random.default_rng(0)
    seen = [random_drawing(rng) for _ in range(1500)]
    assert {drawing.toy.kind for drawing in seen} == set(KINDS)
    assert {drawing.toy.pattern for drawing in seen} == set(PATTERNS)
    assert {drawing.toy.colour.name for drawing in seen} == set(COLOURS)
    assert {drawing.scene for drawing in seen} == {None, *SCENES}
    assert {drawing.style for drawing in seen} == set(STYLES)
    assert {drawing.accessory for drawing in seen} == {None, *ACCESSORIES}
    assert {drawing.side for drawing in seen} == {None, *SIDES}
    assert all(drawing.background.name != drawing.toy.colour.name for drawing in seen)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 3 toys, not 4"):
        replace(DRAWING, count=4)
    with pytest.raises(ValueError, match="only a single toy"):
        replace(DRAWING, count=2, side="left")


def test_needs_no_torch() -> None:
    code = "import sys, miniature.__main__; sys.exit(any(name in sys.modules for name in ('torch', 'diffusion')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
