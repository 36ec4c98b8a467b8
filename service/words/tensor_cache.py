"""A cache of tensors on the device: vectors of words, hidden states of prompts."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

import torch

K = TypeVar("K", bound=Hashable)


class TensorCache(Generic[K]):
    """At most `limit_bytes` of tensors; the least recently used is evicted first. For one thread.

    Requests hold references to their tensors, so an eviction does not affect requests in flight.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._tensors: OrderedDict[K, torch.Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def get(self, key: K) -> torch.Tensor | None:
        tensor = self._tensors.get(key)
        if tensor is not None:
            self._tensors.move_to_end(key)
        return tensor

    def put(self, key: K, tensor: torch.Tensor) -> None:
        """Caches `tensor`. A tensor larger than the whole cache stays until the next one is added."""
        if key in self._tensors:
            return
        self._tensors[key] = tensor
        self._held_bytes += tensor.nbytes
        while self._held_bytes > self._limit_bytes and len(self._tensors) > 1:
            _, evicted = self._tensors.popitem(last=False)
            self._held_bytes -= evicted.nbytes
