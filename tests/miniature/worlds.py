"""Strategies: any toy, any drawing."""

from hypothesis import strategies as st

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


@st.composite
def drawings(draw: st.DrawFn) -> Drawing:
    count = draw(counts)
    return Drawing(
        toy=draw(toys),
        background=draw(colours),
        scene=draw(st.none() | st.sampled_from(SCENES)),
        style=draw(st.sampled_from(STYLES)),
        accessory=draw(st.none() | st.sampled_from(ACCESSORIES)),
        count=count,
        side=draw(st.none() | st.sampled_from(SIDES)) if count == 1 else None,
    )


seeds = st.integers(0, 2**32 - 1)
