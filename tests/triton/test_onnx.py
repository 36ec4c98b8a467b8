"""`export-triton --backend onnx`: ONNX Runtime predicts from the file as torch does, each row at its own step.

The Triton that the tests run has no ONNX Runtime backend, so its file is run here, as that backend would.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from google.protobuf import text_format
from pseudoword.cli import main
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from diffusion.checkpoint import BaseModel
from tests.triton.conftest import FP16, FP32, Batch, distance, export

KINDS = {"fp32": ("TYPE_FP32", "tensor(float)"), "fp16": ("TYPE_FP16", "tensor(float16)")}


@pytest.mark.slow
@pytest.mark.timeout(600)  # the exporter traces the whole UNet
@pytest.mark.parametrize(("precision", "limit"), [("fp32", FP32), ("fp16", FP16)])
@torch.inference_mode()
def test_onnx_runtime_predicts_as_torch_does(
    local: BaseModel, batch: Batch, tmp_path: Path, precision: str, limit: float
) -> None:
    with torch.inference_mode(False):
        export(tmp_path, "denoiser", "--backend", "onnx", "--precision", precision)
    folder = tmp_path / "denoiser"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "config.pbtxt",
        "1/model.onnx",
    }
    config: Any = text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    kind, wire = KINDS[precision]
    assert (config.backend, config.parameters["digest"].string_value) == ("onnxruntime", local.spec.digest)
    given = {one.name: one for one in (*session.get_inputs(), *session.get_outputs())}
    assert set(given) == {one.name for one in (*config.input, *config.output)}
    for one in (*config.input, *config.output):
        narrow = one.name == "timesteps"
        assert one.data_type == DataType.Value("TYPE_FP32" if narrow else kind), one.name
        assert given[one.name].type == ("tensor(float)" if narrow else wire), one.name
        # Triton adds the number of rows before the sizes of the configuration.
        sizes = [-1 if isinstance(size, str) else size for size in given[one.name].shape]
        assert sizes == [-1, *one.dims], one.name

    for rows, cells in ((2, 16), (5, 24), (1, 8)):
        asked = batch(rows=rows, cells=cells)
        numbers = dict(zip(("latents", "timesteps", "hidden"), (one.numpy() for one in asked), strict=True))
        numbers["timesteps"] = numbers["timesteps"].reshape(-1, 1)
        narrow = {
            name: numbers[name].astype(np.float16 if precision == "fp16" else np.float32)
            for name in ("latents", "hidden")
        }
        (predicted,) = session.run(None, numbers | narrow)
        assert distance(local.denoiser.predict(*asked), torch.from_numpy(predicted).float()) < limit


def test_export_rejects_a_precision_that_onnx_lacks(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["export-triton", str(tmp_path), "--backend", "onnx", "--precision", "bf16"])
    assert result.exit_code == 2
    assert "--precision" in result.output
    assert not [*tmp_path.iterdir()]
