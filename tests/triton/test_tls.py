"""Triton over mutual TLS, with a model in bfloat16."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from diffusion.checkpoint import BaseModel
from diffusion.settings import DenoiserSettings
from diffusion.triton import TritonDenoiser
from rpc.settings import SettingsError
from tests.triton.conftest import BF16, Batch, distance, export
from tests.triton.servers import TLS, Triton

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def guarded(triton_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    folder = tmp_path_factory.mktemp("guarded")
    export(folder / "repository", "denoiser", "--precision", "bf16")
    with Triton(triton_binary, folder / "repository", folder, tls=True) as server:
        yield server


def settings(server: Triton, **tls: Path) -> DenoiserSettings:
    return DenoiserSettings.model_validate({"kind": "triton", "endpoints": server.address, "start_s": 0} | tls)


@torch.inference_mode()
def test_mutual_tls_with_a_bfloat16_model(guarded: Triton, local: BaseModel, batch: Batch) -> None:
    cert, key = TLS / "cert.pem", TLS / "key.pem"
    denoiser = TritonDenoiser(local.spec, settings(guarded, ca=cert, cert=cert, key=key))
    asked = batch(rows=3)
    assert distance(local.denoiser.predict(*asked), denoiser.predict(*asked)) < BF16
    denoiser.close()


def test_connections_without_a_certificate_are_refused(guarded: Triton, local: BaseModel) -> None:
    for tls in ({}, {"ca": TLS / "cert.pem"}):
        with pytest.raises(SettingsError, match="no Triton server answers"):
            TritonDenoiser(local.spec, settings(guarded, **tls))
