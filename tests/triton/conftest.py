"""A Triton server with exports of `pseudoword export-triton`, and models that denoise on it."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from pseudoword.cli import main
from pseudoword.names import WordRef

from diffusion.checkpoint import BaseModel
from diffusion.settings import DenoiserSettings
from diffusion.spec import ModelSpec
from tests.conftest import ROOT
from tests.triton.servers import Triton

# Name on Triton: options of the export. The delay lets concurrent calls be merged.
MODELS: Mapping[str, tuple[str, ...]] = {
    "denoiser": ("--queue-delay", "20"),
    "narrow": ("--precision", "fp16", "--max-batch", "2", "--max-queue", "4"),
}

# The allowed distance() between a call's result and the local result in fp32.
FP32, FP16, BF16 = 1e-5, 5e-3, 5e-2


@pytest.fixture(scope="session")
def triton_binary(starts_process: None) -> Path:
    """`.cache/bin/tritonserver`, $PSEUDOWORD_TRITON or `tritonserver` on the PATH. If it is missing, tests fail in CI
    and are skipped elsewhere."""
    places = [
        os.environ.get("PSEUDOWORD_TRITON"),
        str(ROOT / ".cache/bin/tritonserver"),
        shutil.which("tritonserver"),
    ]
    for place in places:
        if place and os.access(place, os.X_OK):
            return Path(place)
    missing = "NO TRITON: nothing was tested on a Triton server. Run `make triton`, or set PSEUDOWORD_TRITON to it"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(scope="session")
def repository(triton_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, exported once for each of MODELS."""
    folder = tmp_path_factory.mktemp("repository")
    for name, options in MODELS.items():
        export(folder, name, *options)
    return folder


def export(folder: Path, name: str, *options: str) -> None:
    """Exports as an operator does."""
    result = CliRunner().invoke(main, ["export-triton", str(folder), "--name", name, *options])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="session")
def triton(triton_binary: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    with Triton(triton_binary, repository, tmp_path_factory.mktemp("triton")) as server:
        yield server


@pytest.fixture(scope="session")
def local() -> BaseModel:
    """The bundled model, denoising here."""
    return BaseModel.load(None)


Connect = Callable[..., Any]


@pytest.fixture
def connect(triton: Triton, local: BaseModel) -> Iterator[Connect]:
    """connect(...settings) makes a TritonDenoiser of the bundled model; all are closed at the end."""
    from diffusion.triton import TritonDenoiser

    made: list[TritonDenoiser] = []

    def make(spec: ModelSpec = local.spec, **settings: Any) -> TritonDenoiser:
        on: dict[str, Any] = {"kind": "triton", "start_s": 0, "endpoints": triton.address}
        made.append(TritonDenoiser(spec, DenoiserSettings(**(on | settings))))
        return made[-1]

    yield make
    for denoiser in made:
        denoiser.close()


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The relative difference of two tensors."""
    assert one.shape == other.shape
    return float((one - other).norm() / one.norm())


@pytest.fixture(scope="session")
def vectors(local: BaseModel) -> Mapping[WordRef, torch.Tensor]:
    """A word of two vectors with about the norm of the vocabulary."""
    generator = torch.Generator().manual_seed(7)
    return {WordRef(None, "rex"): torch.randn(2, local.spec.encoders[0].dims, generator=generator) * 0.05}


Batch = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="session")
def batch(local: BaseModel) -> Batch:
    """batch(rows=..., cells=..., seed=...) makes the arguments of predict: inputs, timesteps, hidden."""
    return partial(_batch, local)


def _batch(
    model: BaseModel, *, rows: int = 2, cells: int = 16, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    encoder = model.spec.encoders[0]
    return (
        torch.randn(rows, model.spec.latent_channels, cells, cells, generator=generator),
        torch.randint(0, 1000, (rows,), generator=generator).float(),
        torch.randn(rows, encoder.length, encoder.dims, generator=generator),
    )
