"""The pictures of a batch, their order and their names. Pure and deterministic: a restart gives the same plan."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

BLANK = re.compile(r"\{([a-z][a-z0-9_]*)\}")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One picture of a batch; `index` counts from 0."""

    index: int
    prompt: str
    seed: int

    @property
    def key(self) -> str:
        """The picture's name in the store and in manifests, without an ending; names sort by index."""
        return f"{self.index:08}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Each prompt with the seeds `seed`, `seed` + 1, ..., in this order, cut into shards of `shard_pictures`."""

    prompts: Sequence[str]
    seeds: int
    seed: int
    shard_pictures: int

    @property
    def total(self) -> int:
        """Number of pictures."""
        return len(self.prompts) * self.seeds

    @property
    def shards(self) -> int:
        return -(-self.total // self.shard_pictures)

    def items(self, shard: int) -> Sequence[Item]:
        """The pictures of a shard, in order."""
        first = shard * self.shard_pictures
        numbers = range(first, min(first + self.shard_pictures, self.total))
        return [
            Item(index=number, prompt=self.prompts[number // self.seeds], seed=self.seed + number % self.seeds)
            for number in numbers
        ]


def fill(template: str, blanks: Mapping[str, Sequence[str]]) -> list[str]:
    """`template` with every combination of texts in its `{blanks}`; the last blank varies fastest."""

    def filled(texts: Mapping[str, str]) -> str:
        return BLANK.sub(lambda blank: texts.get(blank[1], blank[0]), template)

    return [filled(dict(zip(blanks, texts, strict=True))) for texts in product(*blanks.values())]
