"""Renders a drawing to pixels."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from miniature.pen import Frame, Pen
from miniature.scenes import backdrop
from miniature.shapes import SHAPES, wear
from miniature.stylise import stylise
from miniature.world import Accessory, Drawing, Pose, Relation, Toy

SIZE = 64
"""Width and height of a drawing in pixels: the bundled model's resolution."""

_OVERSAMPLING = 4
_SIDES = {"left": 0.3, "right": 0.7}


def paint(drawing: Drawing, rng: np.random.Generator) -> Image.Image:
    """The drawing as an RGB image of SIZE pixels square.

    The generator decides what the drawing does not: the position of the horizon, and the sizes and positions of the
    toys. With one version of Pillow, equal drawings and equal generators give equal pixels.
    """
    size = SIZE * _OVERSAMPLING
    image = backdrop(rng, size, drawing.scene, drawing.background.rgb)
    if drawing.other is None:
        for frame in _frames(rng, drawing, size):
            _place(image, drawing.toy, drawing.accessory, drawing.pose, frame)
    else:
        mine, others = _pair(rng, drawing.relation, size)
        _place(image, drawing.toy, drawing.accessory, None, mine)
        _place(image, drawing.other, None, None, others)
    return stylise(rng, image, drawing.style, SIZE)


def _frames(rng: np.random.Generator, drawing: Drawing, size: int) -> list[Frame]:
    """The frames of equal toys, from left to right."""
    if drawing.count == 1:
        radius = size * (rng.uniform(0.44, 0.54) if drawing.pose == "close" else rng.uniform(0.26, 0.36))
        middle = rng.uniform(0.42, 0.58)
        x = middle if drawing.side is None else _SIDES[drawing.side]
        return [Frame(canvas=size, x=size * x, y=size * rng.uniform(0.5, 0.6), radius=radius)]
    crowding = 1 if drawing.count == 2 else 0.85
    frames = []
    for number in range(drawing.count):
        radius = size * rng.uniform(0.17, 0.2) * crowding
        x = size * ((number + 0.5) / drawing.count + rng.uniform(-0.02, 0.02))
        frames.append(Frame(canvas=size, x=x, y=size * rng.uniform(0.5, 0.64), radius=radius))
    return frames


def _pair(rng: np.random.Generator, relation: Relation, size: int) -> tuple[Frame, Frame]:
    """The frames of the toy and of the other toy."""
    leftwards = True if relation == "left of" else bool(rng.random() < 0.5)
    apart = rng.uniform(0.1, 0.15) if relation == "behind" else rng.uniform(0.23, 0.27)
    depths = ((0.36, 0.42), (0.6, 0.66)) if relation == "behind" else ((0.5, 0.64), (0.5, 0.64))
    mine, others = (
        Frame(
            canvas=size,
            x=size * (0.5 - apart if to_the_left else 0.5 + apart),
            y=size * rng.uniform(*depth),
            radius=size * rng.uniform(0.2, 0.23),
        )
        for to_the_left, depth in zip((leftwards, not leftwards), depths, strict=True)
    )
    return mine, others


def _place(image: Image.Image, toy: Toy, accessory: Accessory | None, pose: Pose | None, frame: Frame) -> None:
    pen = Pen(frame)
    face = SHAPES[toy.kind](pen, toy)
    x, y, radius = frame.x, frame.y, frame.radius
    shadow = Image.new("L", image.size, 0)
    ImageDraw.Draw(shadow).ellipse([x - radius * 0.75, y + radius * 0.72, x + radius * 0.75, y + radius * 1.02], 90)
    image.paste((20, 20, 25), (0, 0), shadow.filter(ImageFilter.GaussianBlur(frame.canvas * 0.012)))
    image.paste(_posed(_surface(toy, frame), pose, frame), (0, 0), _posed(pen.body, pose, frame))
    details = _posed(pen.details, pose, frame)
    image.paste(details, (0, 0), details)
    if accessory is not None:
        worn = Pen(frame)
        wear(worn, accessory, face)
        details = _posed(worn.details, pose, frame)
        image.paste(details, (0, 0), details)


def _posed(layer: Image.Image, pose: Pose | None, frame: Frame) -> Image.Image:
    """A layer, drawn upright and from the front, transformed to the pose."""
    if pose is None or pose == "close":
        return layer
    if pose == "lying":
        return layer.rotate(90, Image.Resampling.BILINEAR, center=(frame.x, frame.y))
    # Perspective: foreshortened, with the nearer side taller. In the frame, u' = u / (0.72 w), v' = v / w, w = 1 + k u.
    facing = 1 if pose == "turned left" else -1
    k = 0.35 * facing / frame.radius
    w = 1 - k * frame.x
    across = facing / 0.72
    numbers = (
        across + frame.x * k, 0.0, frame.x * (w - across),
        frame.y * k, 1.0, frame.y * (w - 1),
        k, 0.0,
    )  # fmt: skip
    scaled = [number / w for number in numbers]
    return layer.transform(layer.size, Image.Transform.PERSPECTIVE, scaled, Image.Resampling.BILINEAR)


def _surface(toy: Toy, frame: Frame) -> Image.Image:
    """The toy's pattern over the whole canvas, lit from above."""
    ys, xs = np.mgrid[0 : frame.canvas, 0 : frame.canvas].astype(np.float32)
    u, v = (xs - frame.x) / frame.radius, (ys - frame.y) / frame.radius
    light = np.clip(1.12 - 0.35 * (u * 0.5 + v * 0.8), 0.62, 1.3)[..., None]
    first = np.array(toy.colour.rgb, np.float32)
    second = np.array(toy.second.rgb, np.float32)
    colours = np.where(_pattern(toy, u, v)[..., None], second, first)
    return Image.fromarray(np.clip(colours * light, 0, 255).astype(np.uint8))


def _pattern(toy: Toy, u: npt.NDArray[np.float32], v: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """A mask of the second colour."""
    period = 0.38 * toy.period
    where: npt.NDArray[np.bool_] = np.zeros(u.shape, bool)
    if toy.pattern == "striped":
        where = np.floor(v / (period * 0.62)) % 2 == 1
    elif toy.pattern == "dotted":
        row = np.floor(v / period)
        across = (u + (row % 2) * period * 0.5) % period - period / 2
        down = v % period - period / 2
        where = across**2 + down**2 < (0.3 * period) ** 2
    elif toy.pattern == "banded":
        where = np.abs(v - 0.05) < 0.24 * toy.period
    elif toy.pattern == "checkered":
        where = (np.floor(u / (period * 0.8)) + np.floor(v / (period * 0.8))) % 2 == 1
    return where
