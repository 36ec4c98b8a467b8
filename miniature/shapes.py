"""The shape of each kind of toy. A shape is a function that draws with a pen in the toy's frame and returns its
face."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from miniature.pen import Pen
from miniature.world import Accessory, Kind, Rgb, Toy

_WHITE: Rgb = (250, 250, 250)
_PUPIL: Rgb = (20, 20, 25)
_BEAK: Rgb = (240, 160, 40)


@dataclass(frozen=True)
class Face:
    """The position of accessories in the toy's frame: centre and half the width of the face, height of the head's
    top."""

    x: float
    y: float
    half_width: float
    top: float


def ball(pen: Pen, toy: Toy) -> Face:
    q = toy.squash
    pen.body_ellipse(-0.8, -0.8 * q, 0.8, 0.8 * q)
    return Face(0, -0.15, 0.42, -0.8 * q)


def cube(pen: Pen, toy: Toy) -> Face:
    front, back = -0.7 * toy.squash, -0.7 * toy.squash - 0.25 * toy.ear
    pen.body_rectangle(-0.7, front, 0.7, 0.7 * toy.squash, corner=0.08)
    pen.polygon((-0.7, front), (-0.45, back), (0.95, back), (0.7, front), colour=shade(toy.colour.rgb, 1.2))
    return Face(0, -0.2, 0.42, back)


def cup(pen: Pen, toy: Toy) -> Face:
    rim, foot = -0.65 * toy.squash, 0.75 * toy.squash
    pen.half_ring(0.3, -0.45, 0.3 + 0.65 * toy.ear, 0.4, start=-90, colour=toy.colour.rgb, width=0.16)
    pen.body_polygon((-0.6, rim), (0.6, rim), (0.45, foot), (-0.45, foot))
    pen.ellipse(-0.6, rim - 0.14, 0.6, rim + 0.14, _dark(toy))
    return Face(0, -0.1, 0.36, -0.72 * toy.squash)


def cat(pen: Pen, toy: Toy) -> Face:
    tip = -0.55 - 0.45 * toy.ear
    for side in (-1, 1):
        pen.body_polygon((side * 0.7, -0.3), (side * 0.62, tip), (side * 0.1, -0.5))
    pen.body_ellipse(-0.75, -0.65, 0.75, 0.75 * toy.squash)
    _eyes(pen, y=-0.1, apart=0.3, size=0.16 * toy.eye)
    pen.polygon((-0.1, 0.15), (0.1, 0.15), (0, 0.27), colour=(235, 120, 140))
    for side in (-1, 1):
        pen.line((side * 0.85, 0.15), (side * 0.4, 0.22), colour=(30, 30, 30), width=0.04)
    return Face(0, -0.1, 0.5, -0.6)


def owl(pen: Pen, toy: Toy) -> Face:
    tip = -0.6 - 0.35 * toy.ear
    for side in (-1, 1):
        pen.body_polygon((side * 0.6, -0.5), (side * 0.55, tip), (side * 0.15, -0.65))
    pen.body_ellipse(-0.65, -0.75, 0.65, 0.85 * toy.squash)
    _eyes(pen, y=-0.25, apart=0.28, size=0.24 * toy.eye)
    pen.polygon((-0.12, -0.08), (0.12, -0.08), (0, 0.15), colour=_BEAK)
    return Face(0, -0.25, 0.52, -0.7)


def fish(pen: Pen, toy: Toy) -> Face:
    height, tail = 0.5 * toy.squash, 0.45 * toy.ear
    pen.body_ellipse(-0.85, -height, 0.5, height)
    pen.body_polygon((0.35, 0), (0.95, -tail), (0.95, tail))
    _eye(pen, -0.5, -0.12, 0.12 * toy.eye)
    return Face(-0.5, -0.12, 0.3, -height)


def car(pen: Pen, toy: Toy) -> Face:
    roof, window = -0.35 - 0.25 * toy.squash, -0.32 - 0.2 * toy.squash
    pen.body_rectangle(-0.95, -0.1, 0.95, 0.42, corner=0.15)
    pen.body_polygon((-0.55, -0.1), (-0.35, roof), (0.35, roof), (0.6, -0.1))
    pen.polygon((-0.38, -0.12), (-0.27, window), (0.28, window), (0.42, -0.12), colour=(190, 225, 240))
    wheel = 0.24 * toy.ear
    for x in (-0.5, 0.5):
        pen.disc(x, 0.42, wheel, (25, 25, 28))
        pen.disc(x, 0.42, wheel * 0.45, (190, 190, 190))
    return Face(0, -0.22, 0.36, roof)


def house(pen: Pen, toy: Toy) -> Face:
    pen.body_rectangle(-0.65, -0.15, 0.65, 0.8, corner=0.03)
    pen.polygon((-0.85, -0.12), (0, -0.55 - 0.4 * toy.ear), (0.85, -0.12), colour=(150, 60, 45))
    pen.rectangle(-0.14, 0.3, 0.14, 0.8, (90, 55, 35))
    pen.rectangle(-0.5, 0.05, -0.22, 0.32, (250, 230, 140))
    pen.rectangle(0.22, 0.05, 0.5, 0.32, (250, 230, 140))
    return Face(0, 0.15, 0.45, -0.5 - 0.4 * toy.ear)


def tree(pen: Pen, toy: Toy) -> Face:
    pen.rectangle(-0.12, 0.2, 0.12, 0.9, (105, 70, 40))
    pen.body_ellipse(-0.7, -0.9 * toy.squash, 0.7, 0.4)
    return Face(0, -0.25, 0.4, -0.85 * toy.squash)


def robot(pen: Pen, toy: Toy) -> Face:
    hip, antenna = 0.62 * toy.squash, 0.25 * toy.ear
    pen.line((0, -0.7), (0, -0.75 - antenna), colour=(90, 90, 95), width=0.06)
    pen.ellipse(-0.09, -0.85 - antenna, 0.09, -0.67 - antenna, (230, 50, 50))
    pen.body_rectangle(-0.5, -0.7, 0.5, -0.02, corner=0.1)
    pen.body_rectangle(-0.65, 0.05, 0.65, hip, corner=0.08)
    pen.rectangle(-0.45, hip, -0.15, 0.9, _dark(toy))
    pen.rectangle(0.15, hip, 0.45, 0.9, _dark(toy))
    _eyes(pen, y=-0.4, apart=0.22, size=0.14 * toy.eye)
    pen.rectangle(-0.25, -0.18, 0.25, -0.1, (40, 40, 45))
    return Face(0, -0.4, 0.4, -0.7)


def mushroom(pen: Pen, toy: Toy) -> Face:
    pen.rectangle(-0.24, 0.0, 0.24, 0.8, (240, 228, 205), corner=0.15)
    pen.body_ellipse(-0.85, -0.75 * toy.squash, 0.85, 0.35)
    pen.erase(-0.9, 0.12, -0.25, 0.4)
    return Face(0, 0.35, 0.25, -0.7 * toy.squash)


def star(pen: Pen, toy: Toy) -> Face:
    points = []
    for corner in range(10):
        radius = 0.92 if corner % 2 == 0 else 0.42 * toy.ear
        angle = -math.pi / 2 + corner * math.pi / 5
        points.append((radius * math.cos(angle), radius * math.sin(angle) * toy.squash))
    pen.body_polygon(*points)
    return Face(0, -0.05, 0.3, -0.85 * toy.squash)


def teapot(pen: Pen, toy: Toy) -> Face:
    lid, spout = -0.5 * toy.squash, -0.35 * toy.ear
    pen.half_ring(-1.05, -0.35, -0.4, 0.4, start=90, colour=toy.colour.rgb, width=0.13)
    pen.body_polygon((0.4, 0.1), (0.85, spout), (1.0, spout), (0.6, 0.4))
    pen.body_ellipse(-0.65, lid, 0.65, 0.65 * toy.squash)
    pen.ellipse(-0.1, lid - 0.2, 0.1, lid, _dark(toy))
    pen.rectangle(-0.3, lid - 0.04, 0.3, lid + 0.06, _dark(toy))
    return Face(0, 0, 0.4, -0.6 * toy.squash)


def bird(pen: Pen, toy: Toy) -> Face:
    pen.body_ellipse(-0.6, -0.25, 0.55, 0.6 * toy.squash)
    pen.body_ellipse(-0.75, -0.75, -0.05, -0.05)
    pen.body_polygon((0.35, 0.1), (0.95, -0.1 * toy.ear), (0.9, 0.25))
    pen.polygon((-0.72, -0.42), (-1.0, -0.32), (-0.7, -0.25), colour=_BEAK)
    pen.disc(-0.48, -0.45, 0.1 * toy.eye, _PUPIL)
    for x in (-0.1, 0.15):
        pen.line((x, 0.55 * toy.squash), (x, 0.9), colour=(200, 130, 40), width=0.06)
    return Face(-0.42, -0.45, 0.3, -0.75)


def boat(pen: Pen, toy: Toy) -> Face:
    keel = 0.7 * toy.squash
    pen.body_polygon((-0.95, 0.2), (0.95, 0.2), (0.6, keel), (-0.6, keel))
    pen.line((0, 0.2), (0, -0.85), colour=(100, 70, 45), width=0.07)
    pen.polygon((0.06, -0.85), (0.06, 0.1), (0.35 + 0.4 * toy.ear, 0.1), colour=(245, 240, 230))
    return Face(0, 0.42, 0.35, -0.85)


def flower(pen: Pen, toy: Toy) -> Face:
    pen.line((0, 0), (0, 0.95), colour=(50, 130, 55), width=0.1)
    pen.ellipse(0.02, 0.4, 0.5, 0.62, (60, 150, 65))
    petal = 0.27 * toy.ear
    for number in range(6):
        x, y = 0.42 * math.cos(number * math.pi / 3), -0.25 + 0.42 * math.sin(number * math.pi / 3)
        pen.body_ellipse(x - petal, y - petal, x + petal, y + petal)
    pen.ellipse(-0.22, -0.47, 0.22, -0.03, (245, 200, 60))
    return Face(0, -0.25, 0.3, -0.85)


SHAPES: Mapping[Kind, Callable[[Pen, Toy], Face]] = {
    "ball": ball,
    "cube": cube,
    "cup": cup,
    "cat": cat,
    "owl": owl,
    "fish": fish,
    "car": car,
    "house": house,
    "tree": tree,
    "robot": robot,
    "mushroom": mushroom,
    "star": star,
    "teapot": teapot,
    "bird": bird,
    "boat": boat,
    "flower": flower,
}


def wear(pen: Pen, accessory: Accessory, face: Face) -> None:
    """Draws an accessory on a face."""
    x, y, half = face.x, face.y, face.half_width
    if accessory == "sunglasses":
        for side in (-1, 1):
            glass = x + side * half * 0.55
            box = (glass - half * 0.48, y - half * 0.38, glass + half * 0.48, y + half * 0.38)
            pen.rectangle(*box, (15, 15, 18), corner=0.1)
        pen.line(
            (x - half * 1.15, y - half * 0.15), (x + half * 1.15, y - half * 0.15), colour=(15, 15, 18), width=0.07
        )
    elif accessory == "a hat":
        felt = (35, 30, 40)
        pen.rectangle(x - 0.5, face.top - 0.06, x + 0.5, face.top + 0.08, felt)
        pen.rectangle(x - 0.3, face.top - 0.5, x + 0.3, face.top + 0.04, felt)
        pen.rectangle(x - 0.3, face.top - 0.16, x + 0.3, face.top - 0.04, (200, 40, 50))
    else:
        wool, neck = (205, 35, 45), y + half * 0.95
        pen.rectangle(x - 0.5, neck - 0.09, x + 0.5, neck + 0.11, wool, corner=0.1)
        pen.rectangle(x + 0.12, neck, x + 0.34, neck + 0.42, wool, corner=0.04)


def shade(colour: Rgb, factor: float) -> Rgb:
    """A lighter (`factor` above 1) or darker colour."""
    red, green, blue = (max(0, min(255, int(channel * factor))) for channel in colour)
    return red, green, blue


def _dark(toy: Toy) -> Rgb:
    return shade(toy.colour.rgb, 0.6)


def _eyes(pen: Pen, *, y: float, apart: float, size: float) -> None:
    for side in (-1, 1):
        _eye(pen, side * apart, y, size)


def _eye(pen: Pen, x: float, y: float, size: float) -> None:
    pen.disc(x, y, size, _WHITE)
    pen.disc(x, y, size * 0.5, _PUPIL)
