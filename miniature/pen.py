"""A pen in a toy's own frame. It draws the body as a mask, which is filled with the pattern, and details over it."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from miniature.world import Rgb

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The square of a toy: coordinates from -1 to 1 around its centre, y downwards. The fields are in pixels."""

    canvas: int
    x: float
    y: float
    radius: float


class Pen:
    """Draws shapes in a frame's coordinates. `body` (mode L) is the mask of the pattern; `details` (RGBA) lie over
    it."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        size = (frame.canvas, frame.canvas)
        self.body = Image.new("L", size, 0)
        self.details = Image.new("RGBA", size, (0, 0, 0, 0))
        self._body = ImageDraw.Draw(self.body)
        self._details = ImageDraw.Draw(self.details)

    def body_ellipse(self, x0: float, y0: float, x1: float, y1: float) -> None:
        self._body.ellipse(self._box(x0, y0, x1, y1), fill=255)

    def body_rectangle(self, x0: float, y0: float, x1: float, y1: float, *, corner: float) -> None:
        self._body.rounded_rectangle(self._box(x0, y0, x1, y1), radius=corner * self._frame.radius, fill=255)

    def body_polygon(self, *points: Point) -> None:
        self._body.polygon(self._points(points), fill=255)

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, colour: Rgb) -> None:
        self._details.ellipse(self._box(x0, y0, x1, y1), fill=(*colour, 255))

    def disc(self, x: float, y: float, radius: float, colour: Rgb) -> None:
        self.ellipse(x - radius, y - radius, x + radius, y + radius, colour)

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, colour: Rgb, *, corner: float = 0.05) -> None:
        box = self._box(x0, y0, x1, y1)
        self._details.rounded_rectangle(box, radius=corner * self._frame.radius, fill=(*colour, 255))

    def polygon(self, *points: Point, colour: Rgb) -> None:
        self._details.polygon(self._points(points), fill=(*colour, 255))

    def half_ring(self, x0: float, y0: float, x1: float, y1: float, *, start: float, colour: Rgb, width: float) -> None:
        """Half of an ellipse's outline, clockwise from `start` degrees."""
        box = self._box(x0, y0, x1, y1)
        self._details.arc(box, start, start + 180, fill=(*colour, 255), width=self._width(width))

    def line(self, *points: Point, colour: Rgb, width: float) -> None:
        self._details.line(self._points(points), fill=(*colour, 255), width=self._width(width), joint="curve")

    def erase(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Erases details; the body is kept."""
        self._details.rectangle(self._box(x0, y0, x1, y1), fill=(0, 0, 0, 0))

    def _point(self, x: float, y: float) -> Point:
        return self._frame.x + x * self._frame.radius, self._frame.y + y * self._frame.radius

    def _points(self, points: Sequence[Point]) -> list[Point]:
        return [self._point(x, y) for x, y in points]

    def _box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        return (*self._point(x0, y0), *self._point(x1, y1))

    def _width(self, width: float) -> int:
        return max(1, int(width * self._frame.radius))
