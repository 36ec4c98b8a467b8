"""Drawings: determined by their seed, and every choice is visible."""

import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings

from miniature.paint import SIZE, paint
from miniature.style import STYLE_NAMES, STYLES, Style, random_style
from miniature.world import (
    ACCESSORIES,
    COLOURS,
    KINDS,
    MAX_COUNT,
    PATTERNS,
    POSES,
    RELATIONS,
    SCENES,
    SIDES,
    Colour,
    Drawing,
    Toy,
    is_withheld,
    random_colour,
    random_drawing,
    random_toy,
    withheld_toy,
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
def test_any_drawing_is_an_rgb_image_determined_by_its_seed(drawing: Drawing, seed: int) -> None:
    image = paint(drawing, np.random.default_rng(seed))
    assert (image.mode, image.size) == ("RGB", (SIZE, SIZE))
    assert np.asarray(image).dtype == np.uint8
    assert image.tobytes() == paint(drawing, np.random.default_rng(seed)).tobytes()


def test_another_seed_gives_another_picture() -> None:
    assert (pixels(DRAWING, 1) != pixels(DRAWING, 2)).any()


def test_every_kind_looks_different() -> None:
    assert_all_differ({kind: replace(DRAWING, toy=replace(CAT, kind=kind)) for kind in KINDS})


def test_every_pattern_looks_different() -> None:
    assert_all_differ({pattern: replace(DRAWING, toy=replace(CAT, pattern=pattern)) for pattern in PATTERNS})


def test_every_style_looks_different() -> None:
    assert_all_differ({name: replace(DRAWING, style=style) for name, style in STYLES.items()}, least=0.05)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"line": 0.2}, {"line": 0.9}),
        ({"colour": 0.2}, {"colour": 0.9}),
        ({"wash": 0.2}, {"wash": 0.9}),
        ({"block": 1}, {"block": 2}),
        ({"stroke": 0.3}, {"stroke": 0.9}),
        ({"stroke": 0.9, "swirl": 0.0}, {"stroke": 0.9, "swirl": 1.0}),
        ({"stroke": 0.9, "swirl": 0.0, "direction": 0.2}, {"stroke": 0.9, "swirl": 0.0, "direction": 1.8}),
        ({"stroke": 0.9, "fineness": 0.5}, {"stroke": 0.9, "fineness": 1.0}),
        ({"palette": 0.5}, {"palette": 2.5}),
        ({"palette": 2.0, "hue": 20.0}, {"palette": 2.0, "hue": 120.0}),
    ],
    ids="-".join,
)
def test_every_number_of_a_style_changes_picture_and_numbers(one: dict[str, float], other: dict[str, float]) -> None:
    styles = {name: Style(**ways) for name, ways in (("one", one), ("other", other))}  # type: ignore[arg-type]
    assert styles["one"].numbers != styles["other"].numbers
    on_grass = replace(DRAWING, scene="grass")
    assert_all_differ({name: replace(on_grass, style=style) for name, style in styles.items()}, least=0.03)


def test_poses_look_different() -> None:
    fish = replace(DRAWING, toy=replace(CAT, kind="fish"))
    assert_all_differ({str(pose): replace(fish, pose=pose) for pose in (None, *POSES)}, least=0.02)


def test_fish_looks_in_the_direction_of_its_pose() -> None:
    """The tail is far from the white of the eye."""
    for pose, side in (("turned left", -1), ("turned right", 1)):
        fish = replace(DRAWING, toy=replace(CAT, kind="fish"), pose=next(p for p in POSES if p == pose))
        shown = pixels(fish)
        eye = np.nonzero((shown > 175).all(-1))[1].mean()
        body = np.nonzero(np.abs(shown - np.array(CAT.colour.rgb)).max(-1) < 70)[1].mean()
        assert np.sign(eye - body) == side


def test_relations_look_different_and_show_both_toys() -> None:
    ball = replace(CAT, kind="ball", colour=Colour(name="purple", rgb=(130, 40, 200)))
    pairs = {relation: replace(DRAWING, other=ball, relation=relation) for relation in RELATIONS}
    assert_all_differ({"behind": pairs["behind"], "left of": pairs["left of"]}, least=0.05)
    for drawing in pairs.values():
        shown = pixels(drawing)
        for toy in drawing.toys:
            near = np.abs(shown - np.array(toy.colour.rgb)).max(-1) < 60
            assert near.sum() > 40, toy.kind
    left = pixels(pairs["left of"])
    orange, purple = (np.abs(left - np.array(toy.colour.rgb)).max(-1) < 60 for toy in pairs["left of"].toys)
    assert np.nonzero(orange)[1].mean() < np.nonzero(purple)[1].mean()


def test_every_scene_and_none_look_different() -> None:
    assert_all_differ({str(scene): replace(DRAWING, scene=scene) for scene in (None, *SCENES)}, least=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_accessory_is_visible_on_every_kind(kind: str) -> None:
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
def test_proportions_are_visible(proportion: str) -> None:
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


def test_nearest_shade_has_the_same_name() -> None:
    known = [random_colour(np.random.default_rng(seed), name) for name in COLOURS for seed in range(60)]
    table = np.array([colour.rgb for colour in known])
    for name in COLOURS:
        for seed in range(60, 90):
            shade = random_colour(np.random.default_rng(seed), name)
            nearest = known[int(np.linalg.norm(table - shade.rgb, axis=1).argmin())]
            assert nearest.name == name, shade


def test_random_drawings_cover_every_choice() -> None:
    rng = np.random.default_rng(0)
    seen = [random_drawing(rng) for _ in range(1500)]
    assert {drawing.toy.kind for drawing in seen} == set(KINDS)
    assert {drawing.toy.pattern for drawing in seen} == set(PATTERNS)
    assert {drawing.toy.colour.name for drawing in seen} == set(COLOURS)
    assert {drawing.scene for drawing in seen} == {None, *SCENES}
    assert {drawing.style.name for drawing in seen} == {None, *STYLE_NAMES}
    assert {drawing.pose for drawing in seen} == {None, *POSES}
    assert {drawing.relation for drawing in seen if drawing.other} == set(RELATIONS)
    assert {drawing.accessory for drawing in seen} == {None, *ACCESSORIES}
    assert {drawing.side for drawing in seen} == {None, *SIDES}
    assert all(drawing.background.name != toy.colour.name for drawing in seen for toy in drawing.toys)


def test_withheld_toys_and_styles_are_never_in_training() -> None:
    rng = np.random.default_rng(0)
    seen = [random_drawing(rng) for _ in range(3000)]
    assert not any(is_withheld(toy) for drawing in seen for toy in drawing.toys)
    assert not any(drawing.style.is_withheld for drawing in seen)
    assert {toy.pattern for drawing in seen for toy in drawing.toys} == set(PATTERNS)
    toys = [withheld_toy(rng) for _ in range(200)]
    assert all(is_withheld(toy) for toy in toys)
    assert {toy.kind for toy in toys} == set(KINDS)
    assert all(random_style(rng, withheld=True).is_withheld for _ in range(50))


def test_impossible_drawings_are_rejected() -> None:
    with pytest.raises(ValueError, match="1 to 3 toys, not 4"):
        replace(DRAWING, count=4)
    with pytest.raises(ValueError, match="only a single toy"):
        replace(DRAWING, count=2, side="left")
    with pytest.raises(ValueError, match="single toy has a pose"):
        replace(DRAWING, count=2, pose="lying")
    with pytest.raises(ValueError, match="beside a single one"):
        replace(DRAWING, count=2, other=CAT)
    with pytest.raises(ValueError, match="fills the middle"):
        replace(DRAWING, side="left", pose="close")


def test_drawing_imports_no_torch() -> None:
    code = "import sys, miniature.__main__; sys.exit(any(name in sys.modules for name in ('torch', 'diffusion')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
