"""Initial vectors of a job, from words, a version, the best word or the learned start."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from diffusion.checkpoint import BaseModel
from diffusion.encoder import PromptEncoder
from diffusion.prompt import Prompt
from trainer.training.initializer_words import InitializerWords
from trainer.training.start_network import StartNetwork, unit_of

CANDIDATES = 24  # maximum number of words that promising() returns


@dataclass(frozen=True, kw_only=True)
class FromWords:
    """Words of the vocabulary, one entry each. With `encoded`, not their rows of the vocabulary but the text encoder's
    output for them (Cross Initialization, CVPR 2024), which learned vectors come to resemble."""

    words: str
    encoded: bool = False


@dataclass(frozen=True, kw_only=True)
class FromVectors:
    """The vectors of an existing version, fp32 [vectors, dims]."""

    vectors: np.ndarray


@dataclass(frozen=True, kw_only=True)
class BestWord:
    """The word of the vocabulary with the lowest loss on the pictures; `usual` if none beats that."""

    usual: str


@dataclass(frozen=True, kw_only=True)
class LearnedStart:
    """The learned start's prediction for the pictures of a concept of `kind`; the word `usual` if its loss on them is
    lower."""

    kind: str
    usual: str


Initializer = FromWords | FromVectors | BestWord | LearnedStart


class Initializers:
    """Computes initial vectors for one frozen model."""

    def __init__(self, model: BaseModel, encoder: PromptEncoder, network: StartNetwork | None = None) -> None:
        """`network` is the checkpoint's learned start, if it has one."""
        self._encoder = encoder
        self.words = InitializerWords(encoder.tokenizer)
        self._network = None if network is None else network.to(model.device)
        self.table: torch.Tensor = encoder.vocabulary.detach().float()
        self.unit = unit_of(self.table)

    def vectors(self, start: FromWords | FromVectors, count: int) -> torch.Tensor:
        """fp32 [count, dims]: one entry for each vector; if the numbers differ, the entries' mean for every vector."""
        match start:
            case FromVectors(vectors=vectors):
                rows = torch.from_numpy(vectors).to(self.table.device)
            case FromWords(words=words, encoded=False):
                rows = self.table[torch.tensor(self.words.ids(words), device=self.table.device)]
            case FromWords(words=words):
                rows = self._encoded(words)
        return rows if len(rows) == count else rows.mean(dim=0, keepdim=True).expand(count, -1)

    @property
    def learned_kinds(self) -> Sequence[str]:
        """Kinds of concepts that the learned start supports."""
        return () if self._network is None else self._network.kinds

    @torch.no_grad()
    def learned(self, kind: str, latents: torch.Tensor, count: int) -> torch.Tensor:
        """fp32 [count, dims], all rows equal: the learned start's prediction for scaled latents [pictures, channels, h,
        w]."""
        if self._network is None:
            raise ValueError("the checkpoint has no learned start")
        vectors: torch.Tensor = self._network([latents], kind) * self.unit
        return vectors.expand(count, -1)

    @torch.no_grad()
    def _encoded(self, words: str) -> torch.Tensor:
        entries = len(self.words.ids(words))
        hidden = self._encoder.encode([Prompt((words,))], {})
        return hidden[0, 1 : 1 + entries].float()

    def promising(self, vector: torch.Tensor, gradient: torch.Tensor) -> list[str]:
        """Up to CANDIDATES whole words with the lowest loss to first order around `vector` [dims] (HotFlip, arXiv
        1712.06751), lowest first."""
        gains = ((self.table - vector) @ gradient).tolist()
        words: list[str] = []
        for entry in np.argsort(gains, kind="stable").tolist():
            word = self._encoder.tokenizer.word(entry)
            if word is not None:
                words.append(word)
                if len(words) == CANDIDATES:
                    break
        return words
