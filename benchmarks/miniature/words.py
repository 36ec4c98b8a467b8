"""Scores of words that the trainer's default recipe learns from four pictures of withheld toys and styles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from pseudoword.client import Client
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.sheet import Tile
from safetensors.torch import save

from benchmarks.miniature.prompts import draw
from benchmarks.miniature.scores import PictureJudge
from miniature.judges.attributes import ATTRIBUTES
from miniature.judges.clip import Judge
from miniature.paint import paint
from miniature.style import Style, random_style
from miniature.training.vectors import Vectors
from miniature.world import COLOURS, SCENES, Drawing, Toy, random_colour, training_toy, withheld_toy

PICTURES = 4
_TRUE = 8  # additional drawings of a toy, for the ceiling
EDITS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "on the beach": ("a photo of a {} on the beach", {"scene": "beach"}),
    "with sunglasses": ("a photo of a {} with sunglasses", {"accessory": "sunglasses"}),
    "in the style of van gogh": ("a {} in the style of van gogh", {"style": "van gogh"}),
    "two": ("a photo of two {}", {"count": "two"}),
    "beside another": ("a photo of a {} beside a {other}", {"count": "a pair"}),
}
"""By name: the prompt, and the attributes that its pictures should show besides the toy's kind and colour."""
_EACH = 2  # pictures of each edit
_PLAIN = 4


@dataclass(frozen=True, kw_only=True)
class ToyScore:
    """A toy's figures. All but `kept` are CLIP-I: the mean product of the unit vectors of drawn pictures and of
    additional true drawings."""

    toy: Toy
    floor: float
    ceiling: float
    learned: float
    oracle: float
    kept: Mapping[str, float]
    """For each edit the share of pictures in which the edit, the kind and the colour are recognised; "plain": kind and
    colour without an edit."""

    def share(self, clip_i: float) -> float:
        """The position of `clip_i` between the floor (0) and the ceiling (1)."""
        return (clip_i - self.floor) / (self.ceiling - self.floor)


def toys(count: int, seed: int = 0) -> list[Toy]:
    """Withheld toys."""
    rng = np.random.default_rng((seed, 11))
    return [withheld_toy(rng) for _ in range(count)]


def styles(count: int, seed: int = 0) -> list[Style]:
    """Withheld styles."""
    rng = np.random.default_rng((seed, 12))
    return [random_style(rng, withheld=True) for _ in range(count)]


def photos(toy: Toy, rng: np.random.Generator, count: int) -> list[Image.Image]:
    """Different photos of one toy."""
    walls = [name for name in COLOURS if name != toy.colour.name]
    return [
        paint(
            Drawing(
                toy=toy,
                background=random_colour(rng, walls[int(rng.integers(len(walls)))]),
                scene=SCENES[int(rng.integers(len(SCENES)))] if rng.random() < 0.55 else None,
            ),
            rng,
        )
        for _ in range(count)
    ]


def learn_toys(
    client: Client, judge: Judge, classifier: PictureJudge, vectors: Vectors, some: Sequence[Toy]
) -> tuple[list[ToyScore], list[list[Tile]]]:
    """Learns a word for each toy and measures it. Also returns the rows of a sheet, one for each toy: true, learned,
    oracle, edits."""
    rng = np.random.default_rng(13)
    shown = [photos(toy, rng, PICTURES + _TRUE) for toy in some]
    for number, (toy, pictures) in enumerate(zip(some, shown, strict=True)):
        client.learn(f"toy-{number}", [png(picture) for picture in pictures[:PICTURES]], start="toy", seed=number)
        with torch.no_grad():
            _import(client, f"oracle-{number}", vectors.of_toys([toy]))
    floor = judge.look(draw(client, ["a photo of a toy"] * 32, seed=500))
    scores, rows = [], []
    for number, (toy, pictures) in enumerate(zip(some, shown, strict=True)):
        word, other = f"<toy-{number}>", f"<toy-{(number + 1) % len(some)}>"
        plain = draw(client, [f"a photo of a {word}"] * _PLAIN)
        oracle = draw(client, [f"a photo of a <oracle-{number}>"] * _PLAIN)
        edits = {
            name: draw(client, [sentence.format(word, other=other)] * _EACH) for name, (sentence, _) in EDITS.items()
        }
        true = judge.look(pictures[PICTURES:])
        of = [alike(true, judge.look(images)) for images in (plain, oracle)]
        shares = {"plain": kept(classifier, plain, toy, {})}
        shares |= {name: kept(classifier, edits[name], toy, wanted) for name, (_, wanted) in EDITS.items()}
        scores.append(
            ToyScore(toy=toy, floor=alike(true, floor), ceiling=_others(true), learned=of[0], oracle=of[1], kept=shares)
        )
        rows.append(
            [
                Tile(image=pictures[0], caption="true"),
                Tile(image=plain[0], caption="learned"),
                Tile(image=oracle[0], caption="oracle"),
                *(Tile(image=edits[name][0], caption=name) for name in EDITS),
            ]
        )
    return scores, rows


@dataclass(frozen=True, kw_only=True)
class StyleScore:
    """A style's figures, on toys that are not in its training pictures."""

    floor: float
    ceiling: float
    learned: float
    oracle: float
    kind: float
    """Share of the pictures in which the requested kind of toy is recognised."""

    def share(self, clip_i: float) -> float:
        """The position of `clip_i` between the floor (0), the same prompt without the style, and the ceiling (1)."""
        return (clip_i - self.floor) / (self.ceiling - self.floor)


def learn_styles(
    client: Client, judge: Judge, classifier: PictureJudge, vectors: Vectors, some: Sequence[Style]
) -> tuple[list[StyleScore], list[list[Tile]]]:
    """Learns a word for each style from four drawings of different toys, and measures it on other toys. Also returns
    the rows of a sheet."""
    rng = np.random.default_rng(14)
    scores, rows = [], []
    for number, style in enumerate(some):
        drawn = [_in_style(training_toy(rng), style, rng) for _ in range(PICTURES)]
        client.learn(
            f"style-{number}",
            [png(image) for image in drawn],
            kind=registry_resources.CONCEPT_KIND_STYLE,
            start="painting",
            seed=number,
        )
        with torch.no_grad():
            _import(client, f"style-oracle-{number}", vectors.of_styles([style]))
        things = [replace(training_toy(rng), pattern="plain") for _ in range(_PLAIN)]
        true = judge.look([_in_style(toy, style, rng) for toy in things])
        names = [f"a {toy.colour.name} {toy.kind}" for toy in things]
        floor, learned, oracle = (
            draw(client, [form.format(name) for name in names])
            for form in (
                "a photo of {}",
                f"{{}} in the style of <style-{number}>",
                f"{{}} in the style of <style-oracle-{number}>",
            )
        )
        again = judge.look([_in_style(toy, style, rng) for toy in things])
        pairs = [_paired(true, other) for other in (judge.look(floor), again, judge.look(learned), judge.look(oracle))]
        kinds = classifier.judge(learned)["kind"].argmax(dim=1)
        right = [ATTRIBUTES["kind"].answers[int(found)] == toy.kind for found, toy in zip(kinds, things, strict=True)]
        scores.append(
            StyleScore(floor=pairs[0], ceiling=pairs[1], learned=pairs[2], oracle=pairs[3], kind=float(np.mean(right)))
        )
        rows.append(
            [
                *(Tile(image=image, caption="true") for image in drawn[:2]),
                *(Tile(image=image, caption=name) for image, name in zip(learned[:3], names, strict=False)),
                Tile(image=oracle[0], caption="oracle"),
            ]
        )
    return scores, rows


def _in_style(toy: Toy, style: Style, rng: np.random.Generator) -> Image.Image:
    walls = [name for name in COLOURS if name != toy.colour.name]
    background = random_colour(rng, walls[int(rng.integers(len(walls)))])
    return paint(Drawing(toy=toy, background=background, style=style), rng)


def kept(classifier: PictureJudge, images: list[Image.Image], toy: Toy, wanted: Mapping[str, str]) -> float:
    """The share of the images in which the attributes `wanted` are recognised, and the toy's kind and colour are among
    the two likeliest answers.

    The two likeliest, because a banded toy has two colours, and a pair two kinds.
    """
    found = classifier.judge(images)
    hits = []
    for place in range(len(images)):
        likeliest = {
            name: [ATTRIBUTES[name].answers[answer] for answer in found[name][place].argsort(descending=True)[:2]]
            for name in ("kind", "colour")
        }
        is_kept = toy.kind in likeliest["kind"] and toy.colour.name in likeliest["colour"]
        is_seen = all(
            ATTRIBUTES[name].answers[int(found[name][place].argmax())] == answer for name, answer in wanted.items()
        )
        hits.append(is_kept and is_seen)
    return float(np.mean(hits))


def alike(one: torch.Tensor, other: torch.Tensor) -> float:
    """The mean product of two sets of unit vectors: CLIP-I for pictures and pictures, CLIP-T for pictures and
    sentences."""
    return float((one @ other.T).mean())


def _others(vectors: torch.Tensor) -> float:
    """The mean product of the vectors of different drawings of one set."""
    products = vectors @ vectors.T
    count = len(vectors)
    return float((products.sum() - products.trace()) / (count * (count - 1)))


def _paired(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one * other).sum(dim=1).mean())


def _import(client: Client, concept: str, vectors: torch.Tensor) -> None:
    client.import_version(concept, save({"vectors": vectors.contiguous()}))


def png(image: Image.Image) -> bytes:
    """The picture as PNG, for an upload."""
    file = BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
