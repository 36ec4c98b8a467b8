"""Draws examples/rex/1.png to 4.png, the pictures that the demo and the tests learn <rex> from.

    python examples/draw_rex.py [FOLDER]

Four drawings of one toy, a mushroom with blue and white stripes, as a photo would show it before different things. The
vocabulary has no word for it: "mushroom" is any of them.
"""

import sys
from pathlib import Path

import numpy as np

from miniature.paint import paint
from miniature.world import Colour, ColourName, Drawing, Scene, Toy, random_colour

REX = Toy(
    kind="mushroom",
    colour=Colour(name="blue", rgb=(22, 126, 221)),
    second=Colour(name="white", rgb=(243, 246, 241)),
    pattern="striped",
    squash=0.88,
    period=0.81,
)
# Scene, or None and the colour of a plain background.
PLACES: tuple[tuple[Scene | None, ColourName], ...] = (
    ("grass", "white"),
    ("table", "white"),
    (None, "yellow"),
    (None, "purple"),
)


def draw(folder: Path) -> list[Path]:
    """Writes the four pictures and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, (scene, background) in enumerate(PLACES, start=1):
        rng = np.random.default_rng(number)
        drawing = Drawing(toy=REX, scene=scene, background=random_colour(rng, background))
        files.append(folder / f"{number}.png")
        paint(drawing, rng).save(files[-1], optimize=True)
    return files


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "rex")
