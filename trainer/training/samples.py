"""The sample that a row is trained on. A counter-based generator draws it, so it depends on seed, step and row only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from trainer.training.recipe import Recipe

# Step numbers that training never reaches; their samples compare starts, and measure a version's loss.
TRIAL_STEP = 2**31 - 1
EVALUATION_STEP = 2**31 - 2
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TrainingSample:
    """The sample of one row. `picture` is an index into the latents, in which mirrors follow the pictures.
    `posterior_noise` and `noise` [channels, h, w] are standard normal: the first samples the latent's posterior, the
    second is the noise to be predicted."""

    picture: int
    sentence: str
    timestep: int
    posterior_noise: Floats
    noise: Floats


def draw(
    recipe: Recipe,
    *,
    seed: int,
    step: int,
    row: int,
    latents: int,
    templates: Sequence[Sequence[str]],
    shape: tuple[int, ...],
) -> TrainingSample:
    """The sample of row `row` of step `step` (both from 0) of the job with `seed`; `latents` is the number of pictures,
    mirrors included.

    The generator is Philox (Salmon et al. 2011) keyed by (seed, step, row): no sample depends on another.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, step << 32 | row]))
    picture = int(generator.integers(latents))
    sentences = templates[picture % len(templates)]
    sentence = sentences[int(generator.integers(len(sentences)))]
    return TrainingSample(
        picture=picture,
        sentence=sentence,
        timestep=_timestep(recipe, row, float(generator.random())),
        posterior_noise=generator.standard_normal(shape, dtype=np.float32),
        noise=generator.standard_normal(shape, dtype=np.float32),
    )


def samples_of_all_timesteps(
    recipe: Recipe,
    *,
    seed: int,
    step: int,
    count: int,
    latents: int,
    templates: Sequence[Sequence[str]],
    shape: tuple[int, ...],
) -> list[TrainingSample]:
    """The samples of all `count` rows of a step, one from each of `count` equal strata of the recipe's timesteps, in
    ascending order; otherwise as `draw`."""
    whole = replace(recipe, rows=count, stratified=True)
    return [
        draw(whole, seed=seed, step=step, row=row, latents=latents, templates=templates, shape=shape)
        for row in range(count)
    ]


def _timestep(recipe: Recipe, row: int, share: float) -> int:
    """Maps a uniform `share` in [0, 1) to a timestep: of the row's own stratum, or of the whole range."""
    span = recipe.last_timestep - recipe.first_timestep + 1
    if recipe.stratified:
        share = (row + share) / recipe.rows
    return recipe.first_timestep + min(span - 1, int(share * span))
