"""Vectors of words on the device, by their digest."""

from collections import OrderedDict

import torch


class VectorCache:
    """At most `limit_bytes` of vectors; the one not used for longest goes first. Lives on the event loop.

    Requests hold the tensors that they use, so an eviction changes nothing for those in flight.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._vectors: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def get(self, digest: str) -> torch.Tensor | None:
        vectors = self._vectors.get(digest)
        if vectors is not None:
            self._vectors.move_to_end(digest)
        return vectors

    def put(self, digest: str, vectors: torch.Tensor) -> None:
        """Keeps `vectors` [n, dims]; those that are larger than the whole cache stay until others come."""
        if digest in self._vectors:
            return
        self._vectors[digest] = vectors
        self._held_bytes += vectors.nbytes
        while self._held_bytes > self._limit_bytes and len(self._vectors) > 1:
            _, evicted = self._vectors.popitem(last=False)
            self._held_bytes -= evicted.nbytes
