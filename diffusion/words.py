"""Words in the text encoder: vectors are written into the rows of one batch's embeddings; nothing persists."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Placement:
    """`vectors` [n, dims] replace the positions `position` ... `position + n - 1` of the batch's row `row`."""

    row: int
    position: int
    vectors: torch.Tensor


class WordEmbedding(nn.Module):
    """Replaces an encoder's token embedding, which it wraps unchanged.

    CLIPTextModel takes token ids only, so vectors without an id are inserted here. Gradients flow back to them.
    Placements are thread-local.
    """

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table
        self._here = threading.local()

    @property
    def weight(self) -> torch.Tensor:
        """The vocabulary's own rows, [entries, dims]."""
        return self.table.weight

    @contextmanager
    def placed(self, placements: Sequence[Placement]) -> Iterator[None]:
        """Within the context, this thread's forward passes use `placements`."""
        self._here.placements = placements
        try:
            yield
        finally:
            del self._here.placements

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings [rows, length, dims] of `ids` [rows, length], in the table's precision."""
        embeddings: torch.Tensor = self.table(ids)
        placements: Sequence[Placement] = getattr(self._here, "placements", ())
        if not placements:
            return embeddings
        rows = [placement.row for placement in placements for _ in placement.vectors]
        positions = [placement.position + i for placement in placements for i in range(len(placement.vectors))]
        vectors = torch.cat([placement.vectors for placement in placements])
        where = (torch.tensor(rows, device=ids.device), torch.tensor(positions, device=ids.device))
        return embeddings.index_put(where, vectors.to(embeddings.device, embeddings.dtype))
