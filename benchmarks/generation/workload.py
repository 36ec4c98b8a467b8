"""The workload of the benchmarks of Generation: a seeded mix of words, prompts, schedulers, steps and guidance
scales."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WORDS = 8
_SENTENCES = ("a photo of <{}>", "<{}> on the beach", "a sketch of <{}>", "<{}> in the style of van gogh")
_SCHEDULERS = ("ddim", "euler", "euler-a", "dpm++-2m-karras")
_STEPS = (10, 15, 20)
_GUIDANCE = (1.0, 4.0, 7.5)


@dataclass(frozen=True, kw_only=True)
class DrawRequest:
    """A request for one picture with the model's resolution."""

    word: str
    prompt: str
    scheduler: str
    steps: int
    guidance: float
    seed: int


def mix(count: int, seed: int = 0, steps: Sequence[int] = _STEPS) -> Sequence[DrawRequest]:
    """`count` requests; equal seeds give equal requests."""
    draw = np.random.default_rng(seed)

    def one(number: int) -> DrawRequest:
        word = f"word{draw.integers(WORDS)}"
        return DrawRequest(
            word=word,
            prompt=str(draw.choice(_SENTENCES)).format(word),
            scheduler=str(draw.choice(_SCHEDULERS)),
            steps=int(draw.choice(steps)),
            guidance=float(draw.choice(_GUIDANCE)),
            seed=number,
        )

    return [one(number) for number in range(count)]


def vectors(dims: int) -> dict[str, np.ndarray]:
    """The vectors of each word, fp32 [1 to 4, dims]."""
    draw = np.random.default_rng(1)
    return {f"word{number}": draw.normal(0, 0.05, (1 + number % 4, dims)).astype(np.float32) for number in range(WORDS)}
