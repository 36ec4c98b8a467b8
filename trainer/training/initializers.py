"""Where vectors start."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from diffusion.checkpoint import BaseModel
from diffusion.encoder import PromptEncoder
from diffusion.prompt import Prompt
from rpc.errors import InvalidArgument
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
        self._model = model
        self._encoder = encoder
        self._network = None if network is None else network.to(model.device)
        self.table: torch.Tensor = encoder.vocabulary.detach().float()
        self.unit = unit_of(self.table)

    def ids(self, words: str) -> list[int]:
        """The vocabulary's entries of `words`, one for each. Raises InvalidArgument for a word that is not one."""
        ids = []
        for word in words.split():
            pieces = self._model.tokenizer(word, add_special_tokens=False).input_ids
            if len(pieces) != 1 or pieces[0] in self._model.tokenizer.all_special_ids:
                raise InvalidArgument(
                    f"the model's vocabulary has no single entry for {word[:64]!r}: start from a plainer word, or leave"
                    " the start out",
                    reason="START_UNKNOWN",
                    metadata={"word": word[:64], "entries": str(len(pieces))},
                )
            ids.append(pieces[0])
        return ids

    def first_of(self, candidates: Sequence[str]) -> str:
        """The first of `candidates` that the vocabulary has. Raises InvalidArgument when it has none."""
        for word in candidates[:-1]:
            try:
                self.ids(word)
            except InvalidArgument:
                continue
            return word
        self.ids(candidates[-1])
        return candidates[-1]

    def vectors(self, start: FromWords | FromVectors, count: int) -> torch.Tensor:
        """fp32 [count, dims]: one entry a vector; their mean for every vector where their numbers differ."""
        match start:
            case FromVectors(vectors=vectors):
                rows = torch.from_numpy(vectors).to(self.table.device)
            case FromWords(words=words, encoded=False):
                rows = self.table[torch.tensor(self.ids(words), device=self.table.device)]
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
        entries = len(self.ids(words))
        hidden = self._encoder.encode([Prompt((words,))], {})
        return hidden[0, 1 : 1 + entries].float()

    def promising(self, vector: torch.Tensor, gradient: torch.Tensor) -> list[str]:
        """Up to CANDIDATES whole words of which the loss, to first order around `vector` [dims], is the lowest
        (HotFlip's choice, arXiv 1712.06751)."""
        tokenizer = self._model.tokenizer
        gains = ((self.table - vector) @ gradient).tolist()
        found: list[str] = []
        for index in np.argsort(gains, kind="stable").tolist():
            word = tokenizer.convert_ids_to_tokens(index).removesuffix("</w>")
            # A piece of a word, or a byte, is not read back as itself.
            if word.isalpha() and tokenizer(word, add_special_tokens=False).input_ids == [index]:
                found.append(word)
                if len(found) == CANDIDATES:
                    break
        return found
