"""The bundled model, loaded once, and vectors of two words."""

from collections.abc import Mapping

import pytest
import torch
from pseudoword.names import WordRef

from diffusion.checkpoint import BaseModel


@pytest.fixture(scope="session")
def model() -> BaseModel:
    return BaseModel.load(None)


@pytest.fixture(scope="session")
def vectors(model: BaseModel) -> Mapping[WordRef, torch.Tensor]:
    """`rex` of one vector and `mia` of three, with about the norm of the vocabulary."""
    generator = torch.Generator().manual_seed(7)
    dims = model.spec.encoders[0].dims
    return {
        WordRef(None, name): torch.randn(count, dims, generator=generator) * 0.05
        for name, count in (("rex", 1), ("mia", 3))
    }
