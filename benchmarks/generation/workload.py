"""What is drawn in the benchmarks of Generation: a seeded mix of words, sentences, schedulers, steps and guidance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WORDS = 8
_SENTENCES = ("a photo of <{}>", "<{}> on the beach", "a sketch of <{}>", "<{}> in the style of van gogh")
_SCHEDULERS = ("ddim", "euler", "euler-a", "dpm++-2m-karras")
_STEPS = (10, 15, 20)
_GUIDANCE = (1.0, 4.0, 7.5)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request of one picture of the model's own size."""

    word: str
    prompt: str
    scheduler: str
    steps: int
    guidance: float
    seed: int


def mix(count: int, seed: int = 0, steps: Sequence[int] = _STEPS) -> Sequence[Asked]:
    """`count` requests; the same for the same seed."""
    draw = np.random.default_rng(seed)

    def one(number: int) -> Asked:
        word = f"word{draw.integers(WORDS)}"
        return Asked(
            word=word,
            prompt=str(draw.choice(_SENTENCES)).format(word),
            scheduler=str(draw.choice(_SCHEDULERS)),
            steps=int(draw.choice(steps)),
            guidance=float(draw.choice(_GUIDANCE)),
            seed=number,
        )

    return [one(number) for number in range(count)]


def vectors(dims: int) -> dict[str, np.ndarray]:
    """fp32 [1 to 4, dims] for each word."""
    draw = np.random.default_rng(1)
    return {f"word{number}": draw.normal(0, 0.05, (1 + number % 4, dims)).astype(np.float32) for number in range(WORDS)}
