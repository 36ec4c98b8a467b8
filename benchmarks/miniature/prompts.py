"""Prompts without learned words, and the attributes that a judge recognises in their pictures."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from pseudoword.client import Client

from benchmarks.miniature.scores import PictureJudge
from miniature.chance import choose
from miniature.judges.attributes import ATTRIBUTES
from miniature.style import STYLE_NAMES, STYLES
from miniature.world import ACCESSORIES, COLOURS, SCENES, Drawing, random_colour, training_toy

STEPS, GUIDANCE = 20, 4.0
_PLACES = {
    "beach": "on the beach",
    "snow": "in the snow",
    "grass": "on the grass",
    "table": "on a wooden table",
    "space": "in space",
    "night": "at night",
}
_FORMS = {
    "photo": "a photo of {}",
    "sketch": "a sketch of {}",
    "pixel art": "pixel art of {}",
    "van gogh": "{} in the style of van gogh",
    "watercolor": "a watercolor painting of {}",
}
_IN_FLIGHT = 16


@dataclass(frozen=True, kw_only=True)
class PromptCase:
    """A prompt, and the expected answer of each visible attribute that it names."""

    sentence: str
    answers: Mapping[str, str]


def prompts(count: int, seed: int = 0) -> list[PromptCase]:
    """`count` prompts that name one to five attributes of a single toy."""
    rng = np.random.default_rng(seed)
    return [_random_case(rng) for _ in range(count)]


def _random_case(rng: np.random.Generator) -> PromptCase:
    toy = training_toy(rng)
    style = choose(rng, STYLE_NAMES, weights=(6, 1, 1, 1, 1))
    drawing = Drawing(
        toy=toy,
        background=random_colour(rng, choose(rng, [name for name in COLOURS if name != toy.colour.name])),
        scene=choose(rng, SCENES) if rng.random() < 0.5 else None,
        style=STYLES[style],
        accessory=choose(rng, ACCESSORIES) if rng.random() < 0.35 else None,
    )
    named = {"kind", "style"}
    words: list[str] = []
    if toy.pattern != "plain" and rng.random() < 0.7:
        words.append(toy.pattern)
        named.add("pattern")
    if rng.random() < 0.7:
        words.append(toy.colour.name)
        named.add("colour")
    things = " ".join(["a", *words, toy.kind])
    if drawing.accessory is not None:
        things += f" wearing {drawing.accessory}"
        named.add("accessory")
    if drawing.scene is not None:
        things += f" {_PLACES[drawing.scene]}"
        named.add("scene")
    elif rng.random() < 0.7:
        things += f" on a {drawing.background.name} background"
        named.add("background")
    return PromptCase(
        sentence=_FORMS[style].format(things),
        answers={
            name: attribute.truth(drawing)[0]
            for name, attribute in ATTRIBUTES.items()
            if name in named and attribute.seen(drawing) and len(set(attribute.truth(drawing))) == 1
        },
    )


def draw(client: Client, sentences: Sequence[str], *, seed: int = 0) -> list[Image.Image]:
    """A picture for each sentence, with the seeds `seed`, `seed` + 1 and so on; concurrent requests, not exact."""

    def one(numbered: tuple[int, str]) -> Image.Image:
        number, sentence = numbered
        (picture,) = client.draw(
            sentence, seed=seed + number, steps=STEPS, guidance_scale=GUIDANCE, scheduler="ddim", exact=False
        )
        return Image.open(BytesIO(picture.data)).convert("RGB")

    with ThreadPoolExecutor(_IN_FLIGHT) as pool:
        return list(pool.map(one, enumerate(sentences)))


def recognised(judge: PictureJudge, images: Sequence[Image.Image], cases: Sequence[PromptCase]) -> dict[str, float]:
    """For each attribute, the share of the pictures whose prompt names it in which the judge gives the expected
    answer."""
    found: Mapping[str, torch.Tensor] = judge.judge(list(images))
    right: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for place, one in enumerate(cases):
        for name, answer in one.answers.items():
            likeliest = ATTRIBUTES[name].answers[int(found[name][place].argmax())]
            right[name].append(likeliest == answer)
    return {name: float(np.mean(hits)) for name, hits in right.items() if hits}
