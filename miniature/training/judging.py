"""The losses of the two judges, on drawings; the classifier's loss uses no captions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from miniature.captions import caption
from miniature.judges.attributes import ATTRIBUTES, targets
from miniature.judges.classifier import Classifier
from miniature.training.drawings import Drawings
from miniature.world import Drawing, Pose, Side

_BLURRED = 0.3  # share of blurred drawings, so that soft pictures are judged as well as sharp ones
_NOISE = 0.04
_SHIFT = 6  # maximum shift of a drawing in pixels, in each direction; its edge is repeated
_SIDES: Mapping[Side | None, Side | None] = {"left": "right", "right": "left", None: None}
_POSES: Mapping[Pose | None, Pose] = {"turned left": "turned right", "turned right": "turned left"}


class Batches:
    """Random batches of drawings with their true answers."""

    def __init__(self, drawings: Drawings, batch: int, device: torch.device, *, clean: bool = False) -> None:
        """With `clean`, the pixels are not augmented."""
        self._clean = clean
        self._drawings = drawings
        self._batch = batch
        self._device = device

    def draw(self, generator: torch.Generator) -> tuple[list[Drawing], torch.Tensor]:
        """Drawings, and their pixels [batch, 3, height, width] in [-1, 1]: shifted, half of them mirrored, some
        blurred, all with a little noise. Without this augmentation a network memorises the drawings."""
        rows = torch.randint(self._drawings.count, (self._batch,), generator=generator).tolist()
        shown = [self._drawings.drawing(number) for number in rows]
        pixels = torch.from_numpy(self._drawings.pixels[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1
        if self._clean:
            return shown, pixels.to(self._device)
        for place in (torch.rand(self._batch, generator=generator) < 0.5).nonzero().flatten().tolist():
            if (other := mirrored(shown[place])) is not None:
                shown[place], pixels[place] = other, pixels[place].flip(-1)
        pixels = _moved(pixels, torch.randint(2 * _SHIFT + 1, (self._batch, 2), generator=generator))
        blurred = functional.avg_pool2d(functional.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
        where = torch.rand(self._batch, 1, 1, 1, generator=generator) < _BLURRED
        pixels = torch.where(where, blurred, pixels)
        pixels = pixels + _NOISE * torch.randn(pixels.shape, generator=generator)
        return shown, pixels.to(self._device)

    def answers(self, shown: Sequence[Drawing]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """For each attribute the target probabilities [batch, answers] and whether the answer is visible [batch]."""
        found = {name: targets(shown, attribute) for name, attribute in ATTRIBUTES.items()}
        return {
            name: (torch.from_numpy(shares).to(self._device), torch.from_numpy(seen).to(self._device))
            for name, (shares, seen) in found.items()
        }


def mirrored(drawing: Drawing) -> Drawing | None:
    """The mirrored drawing; None for a toy left of another, because there is no relation "right of"."""
    if drawing.other is not None and drawing.relation == "left of":
        return None
    return replace(drawing, side=_SIDES[drawing.side], pose=_POSES.get(drawing.pose, drawing.pose))


def _moved(pixels: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    """Each picture [channels, height, width], cropped at its corner: 0 to 2 * _SHIFT down and to the right."""
    height, width = pixels.shape[-2:]
    wide = functional.pad(pixels, (_SHIFT,) * 4, mode="replicate")
    cut = [one[:, y : y + height, x : x + width] for one, (y, x) in zip(wide, corners.tolist(), strict=True)]
    return torch.stack(cut)


class ClassifierLoss:
    """The cross entropies of all attributes, summed; each over the drawings in which it is visible."""

    def __init__(self, classifier: Classifier, batches: Batches) -> None:
        self._classifier = classifier
        self._batches = batches

    def __call__(self, generator: torch.Generator) -> torch.Tensor:
        """The loss of one batch."""
        shown, pixels = self._batches.draw(generator)
        return _seen_cross_entropy(self._classifier(pixels), self._batches.answers(shown))


class ClipLoss:
    """CLIP's contrastive loss of pictures and captions (Radford et al. 2021, figure 3), plus the cross entropy of
    pictures and the sentences of each attribute's answers, because few captions in a batch differ in the pattern
    alone."""

    def __init__(self, model: Any, tokenizer: Any, batches: Batches) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._batches = batches
        self._sentences = [sentence for attribute in ATTRIBUTES.values() for sentence in attribute.sentences]
        self._sizes = [len(attribute.sentences) for attribute in ATTRIBUTES.values()]

    def __call__(self, generator: torch.Generator) -> torch.Tensor:
        """The loss of one batch."""
        shown, pixels = self._batches.draw(generator)
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        sentences = [caption(drawing, rng) for drawing in shown]
        captions = [one.with_words(style=None if one.form else "a style") for one in sentences]
        texts = self._read([*captions, *self._sentences])
        states = self._model.vision_model(pixel_values=pixels).pooler_output
        images = functional.normalize(self._model.visual_projection(states), dim=-1)
        scale = self._model.logit_scale.exp().clamp(max=100)
        captioned, answers = texts[: len(shown)], texts[len(shown) :]
        logits = scale * images @ captioned.T
        own = torch.arange(len(shown), device=logits.device)
        contrast = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
        parts = (scale * images @ answers.T).split(self._sizes, dim=1)
        answered = dict(zip(ATTRIBUTES, parts, strict=True))
        return contrast + _seen_cross_entropy(answered, self._batches.answers(shown))

    def _read(self, sentences: list[str]) -> torch.Tensor:
        # Padded to the longest sentence: tokens after the end token have no influence.
        read = self._tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
        ids = read.input_ids.to(next(self._model.parameters()).device)
        states = self._model.text_model(ids).pooler_output
        return functional.normalize(self._model.text_projection(states), dim=-1)


def _seen_cross_entropy(
    logits: dict[str, torch.Tensor], answers: dict[str, tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    total = torch.zeros((), device=next(iter(logits.values())).device)
    for name, (shares, seen) in answers.items():
        if seen.any():
            total = total + functional.cross_entropy(logits[name][seen], shares[seen])
    return total
