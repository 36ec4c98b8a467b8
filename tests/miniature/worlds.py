"""Hypothesis strategies for toys and drawings."""

from hypothesis import strategies as st

from miniature.style import STYLES, Style
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
)

channels = st.integers(0, 255)
colours = st.builds(Colour, name=st.sampled_from(COLOURS), rgb=st.tuples(channels, channels, channels))
toys = st.builds(
    Toy,
    kind=st.sampled_from(KINDS),
    colour=colours,
    second=colours,
    pattern=st.sampled_from(PATTERNS),
    eye=st.floats(0.7, 1.4),
    ear=st.floats(0.7, 1.35),
    squash=st.floats(0.85, 1.15),
    period=st.floats(0.8, 1.3),
)
counts = st.integers(1, MAX_COUNT)
unnamed_styles = st.builds(
    Style,
    line=st.floats(0, 1),
    colour=st.floats(0, 1),
    wash=st.floats(0, 1),
    block=st.sampled_from([1, 2, 4]),
    stroke=st.floats(0, 1),
    swirl=st.sampled_from([0.0, 1.0]),
    direction=st.floats(0, 3.14),
    fineness=st.floats(0.5, 1.1),
    palette=st.floats(0, 3),
    hue=st.floats(0, 359),
)
styles = st.sampled_from(list(STYLES.values())) | unnamed_styles


@st.composite
def drawings(draw: st.DrawFn) -> Drawing:
    other = draw(st.none() | toys)
    count = draw(counts) if other is None else 1
    alone = count == 1 and other is None
    side = draw(st.none() | st.sampled_from(SIDES)) if alone else None
    return Drawing(
        toy=draw(toys),
        background=draw(colours),
        scene=draw(st.none() | st.sampled_from(SCENES)),
        style=draw(styles),
        accessory=draw(st.none() | st.sampled_from(ACCESSORIES)),
        count=count,
        side=side,
        pose=draw(st.none() | st.sampled_from([pose for pose in POSES if pose != "close" or not side]))
        if alone
        else None,
        other=other,
        relation=draw(st.sampled_from(RELATIONS)),
    )


seeds = st.integers(0, 2**32 - 1)
