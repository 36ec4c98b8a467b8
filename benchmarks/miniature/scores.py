"""Compares a judge's answers with the true ones."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from miniature.judges.attributes import ATTRIBUTES, targets
from miniature.world import Drawing


class PictureJudge(Protocol):
    """The miniature CLIP, or the classifier."""

    def judge(self, images: list[Image.Image]) -> Mapping[str, torch.Tensor]:
        """Probabilities [images, answers] of each attribute."""


def answered(judge: PictureJudge, images: Sequence[Image.Image]) -> dict[str, npt.NDArray[np.int64]]:
    """For each attribute the index of the likeliest answer in each picture [images]."""
    parts = [judge.judge(list(images[start : start + 100])) for start in range(0, len(images), 100)]
    return {name: torch.cat([part[name] for part in parts]).argmax(dim=1).numpy() for name in ATTRIBUTES}


def by_answer(judge: PictureJudge, images: Sequence[Image.Image], drawings: Sequence[Drawing]) -> dict[str, float]:
    """For each attribute the accuracy on drawings in which it is visible, averaged over answers.

    Drawings with several true answers are excluded.
    """
    found = answered(judge, images)
    scores = {}
    for name, attribute in ATTRIBUTES.items():
        shares, seen = targets(list(drawings), attribute)
        sure = seen & (shares.max(axis=1) > 0.9)
        truth = shares.argmax(axis=1)
        right = found[name] == truth
        each = [right[sure & (truth == answer)].mean() for answer in np.unique(truth[sure])]
        scores[name] = float(np.mean(each)) if each else float("nan")
    return scores
