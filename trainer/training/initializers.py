"""Where vectors start."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from diffusion.checkpoint import BaseModel
from diffusion.encoder import PromptEncoder
from diffusion.prompt import Prompt
from trainer.training.initializer_words import InitializerWords
from trainer.training.start_network import StartNetwork, unit_of

CANDIDATES = 24  # words of the vocabulary that are looked at more closely


@dataclass(frozen=True, kw_only=True)
class FromWords:
    """Words of the vocabulary, one entry each; `encoded`: instead of their rows, what the text encoder makes of them
    (Cross Initialization, CVPR 2024), which a learned vector comes to resemble."""

    words: str
    encoded: bool = False


@dataclass(frozen=True, kw_only=True)
class FromVectors:
    """fp32 [vectors, dims], as an existing version has them."""

    vectors: np.ndarray


@dataclass(frozen=True, kw_only=True)
class BestWord:
    """The vocabulary's word that explains the pictures best; `usual` is the one it has to beat."""

    usual: str


@dataclass(frozen=True, kw_only=True)
class LearnedStart:
    """What the checkpoint's learned start says of the pictures, as a thing of `kind`; the word `usual` where that
    explains them better."""

    kind: str
    usual: str


Initializer = FromWords | FromVectors | BestWord | LearnedStart


class Initializers:
    """The starts that one frozen model has to offer."""

    def __init__(self, model: BaseModel, encoder: PromptEncoder, network: StartNetwork | None = None) -> None:
        """`network` is the checkpoint's learned start, where it has one."""
        self._encoder = encoder
        self.words = InitializerWords(encoder.tokenizer)
        self._network = None if network is None else network.to(model.device)
        self.table: torch.Tensor = encoder.vocabulary.detach().float()
        self.unit = unit_of(self.table)

    def vectors(self, start: FromWords | FromVectors, count: int) -> torch.Tensor:
        """fp32 [count, dims]: one entry a vector; their mean for every vector where their numbers differ."""
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
        """Kinds of concepts that the checkpoint has a learned start for."""
        return () if self._network is None else self._network.kinds

    @torch.no_grad()
    def learned(self, kind: str, latents: torch.Tensor, count: int) -> torch.Tensor:
        """fp32 [count, dims], all alike: what the learned start says of scaled latents [pictures, channels, h, w]."""
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
        """Up to CANDIDATES whole words of which the loss, to first order around `vector` [dims], is the lowest
        (HotFlip's choice, arXiv 1712.06751)."""
        gains = ((self.table - vector) @ gradient).tolist()
        found: list[str] = []
        for entry in np.argsort(gains, kind="stable").tolist():
            word = self._encoder.tokenizer.word(entry)
            if word is not None:
                found.append(word)
                if len(found) == CANDIDATES:
                    break
        return found
