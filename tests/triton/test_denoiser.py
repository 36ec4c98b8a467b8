"""Denoising on a real Triton server: equal pictures, merged calls, and its errors."""

import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pseudoword.cli import main
from pseudoword.names import WordRef
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from diffusion import decode, denoise
from diffusion.checkpoint import BaseModel
from diffusion.denoise import Denoising
from diffusion.encoder import PromptEncoder
from diffusion.errors import DenoiserRefused, DenoiserUnavailable
from diffusion.loading import load_model
from diffusion.prompt import parse
from diffusion.settings import DenoiserSettings, ModelSettings
from diffusion.spec import BUNDLED
from rpc.settings import SettingsError
from tests.conftest import Eventually, free_port
from tests.relay import Relay
from tests.triton.conftest import FP16, FP32, Batch, Connect, distance
from tests.triton.servers import Triton

pytestmark = pytest.mark.timeout(400)  # the first test starts the server
_ANSWER_S = 100


@pytest.fixture
def remote(connect: Connect) -> BaseModel:
    """The bundled model without a UNet, denoising on Triton."""
    model = BaseModel.load(None, denoiser=connect)
    assert model.unet is None
    return model


def params(model: BaseModel, vectors: Mapping[WordRef, torch.Tensor], **changes: Any) -> Denoising:
    encoder = PromptEncoder(model)
    how: dict[str, Any] = {"scheduler": "ddim", "steps": 4, "guidance": 5.0, "seed": 3, "width": 64, "height": 64}
    return Denoising(
        model,
        embeds=encoder.encode([parse("a photo of <rex> on the beach")], vectors),
        negative=encoder.encode([parse("a sketch of <rex>")], vectors),
        **(how | changes),
    )


def assert_alike(here: Sequence[Denoising], there: Sequence[Denoising], model: BaseModel) -> None:
    """Within 1e-3 of the value range before rounding; one level of 255 after."""
    for one, other in zip(here, there, strict=True):
        span = (one.latents.max() - one.latents.min()).item()
        assert (one.latents - other.latents).abs().max().item() < 1e-3 * span
        left, right = (decode.decode(model, each.latents)[0].astype(int) for each in (one, other))
        assert left.std() > 1
        assert np.abs(left - right).max() <= 1


@pytest.mark.parametrize("scheduler", ["ddim", "euler-a", "dpm++-2m-karras", "heun"])
@torch.inference_mode()
def test_triton_draws_the_same_pictures(
    local: BaseModel, remote: BaseModel, vectors: Mapping[WordRef, torch.Tensor], scheduler: str
) -> None:
    drawn = []
    for model in (local, remote):
        picture = params(model, vectors, scheduler=scheduler)
        while not picture.done:
            denoise.step(model, [picture])
        drawn.append(picture)
    assert_alike(drawn[:1], drawn[1:], local)


@torch.inference_mode()
def test_rows_of_a_call_are_at_different_steps(
    local: BaseModel, remote: BaseModel, vectors: Mapping[WordRef, torch.Tensor]
) -> None:
    """A timestep a row: the exported model keeps step batching."""
    drawn: list[list[Denoising]] = []
    for model in (local, remote):
        pictures = [params(model, vectors, seed=seed, steps=steps) for seed, steps in ((1, 3), (2, 5), (3, 4))]
        while flying := [picture for picture in pictures if not picture.done]:
            denoise.step(model, flying)
        drawn.append(pictures)
    here, there = drawn
    assert_alike(here, there, local)


@pytest.mark.parametrize(
    ("name", "precision", "other", "limit"),
    [("denoiser", "fp32", "fp16", FP32), ("narrow", "fp16", "bf16", FP16)],
)
@torch.inference_mode()
def test_precision_of_model_and_client_must_agree(
    local: BaseModel, connect: Connect, batch: Batch, name: str, precision: str, other: str, limit: float
) -> None:
    asked = batch(rows=2)
    here = local.denoiser.predict(*asked)
    there = connect(model=name, precision=precision).predict(*asked)
    assert there.dtype == here.dtype
    assert distance(here, there) < limit
    with pytest.raises(SettingsError, match=f"has the precision {precision}"):
        connect(model=name, precision=other)


@torch.inference_mode()
def test_call_with_more_rows_than_max_batch_is_split(local: BaseModel, connect: Connect, batch: Batch) -> None:
    asked = batch(rows=5)
    there = connect(model="narrow").predict(*asked)
    assert distance(local.denoiser.predict(*asked), there) < FP16


@torch.inference_mode()
def test_calls_of_two_callers_are_merged(
    local: BaseModel, triton: Triton, connect: Connect, batch: Batch, eventually: Eventually
) -> None:
    executed = partial(triton.counter, "nv_inference_exec_count", "denoiser")
    answered = partial(triton.counter, "nv_inference_request_success", "denoiser")

    rounds = 10
    asked = [batch(rows=2, seed=1), batch(rows=3, seed=2)]
    expected = [local.denoiser.predict(*one) for one in asked]
    together = threading.Barrier(len(asked))

    def replica(number: int) -> list[torch.Tensor]:
        denoiser = connect()
        predicted = []
        for _ in range(rounds):
            together.wait(_ANSWER_S)
            predicted.append(denoiser.predict(*asked[number]))
        return predicted

    before = executed(), answered()
    with ThreadPoolExecutor(len(asked)) as threads:
        answers = list(threads.map(replica, range(len(asked))))
    requests = rounds * len(asked)
    eventually(lambda: answered() - before[1] == requests)  # Triton counts after its response
    executions = executed() - before[0]
    assert rounds <= executions < requests - 1, "no calls were merged"
    for right, given in zip(expected, answers, strict=True):
        assert all(distance(right, one) < FP32 for one in given)


@torch.inference_mode()
def test_concurrent_calls_of_other_sizes_get_their_own_results(
    local: BaseModel, connect: Connect, batch: Batch
) -> None:
    asked = [batch(rows=2, cells=(8, 16, 24)[number % 3], seed=number) for number in range(9)]
    with ThreadPoolExecutor(len(asked)) as threads:
        answers = list(threads.map(lambda one: connect().predict(*one), asked))
    for one, answer in zip(asked, answers, strict=True):
        assert distance(local.denoiser.predict(*one), answer) < FP32


@torch.inference_mode()
def test_exact_call_is_bit_identical_beside_other_calls(connect: Connect, batch: Batch) -> None:
    asked, stop = batch(rows=2, seed=1), threading.Event()
    denoiser = connect()
    solo = denoiser.predict(*asked, alone=True)

    def crowd(seed: int) -> None:
        other = connect()
        while not stop.is_set():
            other.predict(*batch(rows=3, seed=seed))

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(crowd, seed) for seed in (5, 6)]
        answers = [denoiser.predict(*asked, alone=True) for _ in range(10)]
        stop.set()
        for one in running:
            one.result()
    assert all(torch.equal(solo, answer) for answer in answers)


@pytest.mark.parametrize(("place", "shape"), [(0, (2, 3, 16, 16)), (1, (1,)), (2, (2, 32, 64)), (2, (3, 32, 128))])
def test_tensors_of_wrong_shape_are_refused(connect: Connect, batch: Batch, place: int, shape: Sequence[int]) -> None:
    denoiser = connect()
    wrong = list(batch(rows=2))
    wrong[place] = torch.zeros(*shape)
    with pytest.raises(DenoiserRefused) as caught:
        denoiser.predict(*wrong)
    assert caught.value.reason == "DENOISER_REFUSED"
    denoiser.predict(*batch(rows=2))


def test_full_queue_is_denoiser_overloaded(local: BaseModel, connect: Connect, batch: Batch) -> None:
    """Twelve concurrent calls on a queue of four: some are refused, the others are correct."""
    asked, callers = batch(rows=2, cells=24), 12
    denoisers = [connect(model="narrow", timeout_s=_ANSWER_S) for _ in range(callers)]
    together = threading.Barrier(callers)

    def call(number: int) -> torch.Tensor | DenoiserUnavailable:
        together.wait(_ANSWER_S)
        try:
            return denoisers[number].predict(*asked)  # type: ignore[no-any-return]
        except DenoiserUnavailable as error:
            return error

    with ThreadPoolExecutor(callers) as threads:
        answers = list(threads.map(call, range(callers)))
    refused = [answer for answer in answers if isinstance(answer, DenoiserUnavailable)]
    given = [answer for answer in answers if isinstance(answer, torch.Tensor)]
    assert given
    assert {error.reason for error in refused} == {"DENOISER_OVERLOADED"}
    with torch.inference_mode():
        right = local.denoiser.predict(*asked)
    assert all(distance(right, one) < FP16 for one in given)


def test_slow_call_is_denoiser_timeout(connect: Connect, batch: Batch) -> None:
    denoiser = connect(timeout_s=0.02)
    with pytest.raises(DenoiserUnavailable) as caught:
        denoiser.predict(*batch(rows=8, cells=64))
    assert caught.value.reason == "DENOISER_TIMEOUT"
    assert caught.value.retry


@torch.inference_mode()
def test_unreachable_endpoint_is_skipped(local: BaseModel, triton: Triton, connect: Connect, batch: Batch) -> None:
    unreachable = f"127.0.0.1:{free_port()}"
    denoiser = connect(endpoints=f"{unreachable}, {triton.address}")
    asked = batch()
    assert distance(local.denoiser.predict(*asked), denoiser.predict(*asked)) < FP32


@torch.inference_mode()
def test_calls_fail_while_the_server_is_down_and_work_after(
    local: BaseModel, triton: Triton, connect: Connect, batch: Batch
) -> None:
    """A connection that broke between two calls is not noticed."""
    asked = batch()
    right = local.denoiser.predict(*asked)
    with Relay(triton.address) as relay:
        denoiser = connect(endpoints=relay.address)
        for _ in range(2):
            relay.cut()
            relay.up()
            assert distance(right, denoiser.predict(*asked)) < FP32
        relay.cut()
        for _ in range(3):
            with pytest.raises(DenoiserUnavailable) as caught:
                denoiser.predict(*asked)
            assert caught.value.reason == "DENOISER_UNAVAILABLE"
        relay.up()
        assert distance(right, denoiser.predict(*asked)) < FP32


@torch.inference_mode()
def test_failed_endpoint_is_tried_last_for_rest_s(
    local: BaseModel, triton: Triton, connect: Connect, batch: Batch
) -> None:
    asked = batch()
    right = local.denoiser.predict(*asked)
    with Relay(triton.address) as first, Relay(triton.address) as second:
        denoiser = connect(endpoints=f"{first.address},{second.address}", rest_s=3600)
        first.cut()
        assert distance(right, denoiser.predict(*asked)) < FP32
        first.up()
        second.cut()
        assert distance(right, denoiser.predict(*asked)) < FP32
        first.cut()
        with pytest.raises(DenoiserUnavailable):
            denoiser.predict(*asked)


def test_unreachable_server_at_the_start_is_a_settings_error(connect: Connect) -> None:
    unreachable = f"127.0.0.1:{free_port()}"
    with pytest.raises(SettingsError, match=f"no Triton server answers at {unreachable}"):
        connect(endpoints=unreachable, start_s=0.2)


def test_missing_model_is_a_settings_error(connect: Connect) -> None:
    with pytest.raises(SettingsError, match="'painter' is not found"):
        connect(model="painter")


def test_model_of_another_checkpoint_is_a_settings_error(connect: Connect, tmp_path: Path, local: BaseModel) -> None:
    copy = Path(shutil.copytree(BUNDLED, tmp_path / "other"))
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_out.bias"] += 0.01
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(SettingsError) as caught:
        BaseModel.load(str(copy), denoiser=connect)
    assert "another checkpoint" in str(caught.value)
    assert local.spec.digest in str(caught.value)


def test_call_to_a_model_of_another_checkpoint_is_refused(triton: Triton, local: BaseModel, batch: Batch) -> None:
    """The server may restart with other weights: each call sends the digest."""
    from diffusion.triton import TritonDenoiser

    settings = DenoiserSettings(kind="triton", endpoints=triton.address)
    denoiser = TritonDenoiser(local.spec, settings)
    denoiser._spec = replace(local.spec, digest="0" * 64)
    try:
        with pytest.raises(DenoiserRefused, match=local.spec.digest):
            denoiser.predict(*batch())
    finally:
        denoiser.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "triton"},
        {"kind": "triton", "endpoints": " , "},
        {"kind": "triton", "endpoints": "a:1", "cert": "cert.pem"},
        {"kind": "triton", "endpoints": "a:1", "cert": "cert.pem", "key": "key.pem"},
        {"kind": "onnx"},
        {"timeout_s": 0},
        {"endpoint": "a:1"},
    ],
)
def test_invalid_settings_are_rejected(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DenoiserSettings(**settings)


def test_triton_needs_its_extra_and_local_denoising_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "diffusion.triton", raising=False)
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(SettingsError, match=r"pseudoword-server\[triton\]"):
        load_model(ModelSettings(), DenoiserSettings(kind="triton", endpoints="a:1"))
    assert load_model(ModelSettings(device="cpu"), DenoiserSettings()).unet is not None


def test_unreadable_certificate_is_a_settings_error(connect: Connect, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.pem"):
        connect(ca=tmp_path / "absent.pem")


def test_export_overwrites_no_file(repository: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in repository.rglob("*")}
    result = CliRunner().invoke(main, ["export-triton", str(repository)])
    assert result.exit_code == 1
    assert "exists already" in result.output
    assert {file: file.stat().st_mtime_ns for file in repository.rglob("*")} == before


def test_export_of_a_missing_model_writes_no_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["export-triton", str(tmp_path), "--model", str(tmp_path / "absent")])
    assert result.exit_code == 1
    assert str(tmp_path / "absent") in result.output
    assert list(tmp_path.iterdir()) == []
