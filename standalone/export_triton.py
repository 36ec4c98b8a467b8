"""`pseudoword export-triton`: writes a checkpoint's UNet as a model repository of Triton Inference Server."""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # slow to import, and only this command needs it
    from diffusion.checkpoint import BaseModel

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_MODEL = Path(__file__).parent / "triton_model.py"
_CONFIG = """\
# Written by `pseudoword export-triton` from {checkpoint}.
name: "{name}"
backend: "{backend}"
max_batch_size: {max_batch}
input [
  {{ name: "latents" data_type: {kind} dims: [{channels}, -1, -1] }},
  {{ name: "timesteps" data_type: TYPE_FP32 dims: [1] }},
  {{ name: "hidden" data_type: {kind} dims: [-1, {dims}] }}
]
output [
  {{ name: "predicted" data_type: {kind} dims: [{channels}, -1, -1] }}
]
# One instance on each GPU, or one on the CPU.
instance_group [ {{ count: 1 }} ]
dynamic_batching {{
  # How long the first request waits for others. Without it, two callers that alternate would never share a pass.
  max_queue_delay_microseconds: {delay_us}
  default_queue_policy {{
    timeout_action: REJECT
    # Each call sets its own timeout.
    allow_timeout_override: true
    max_queue_size: {max_queue}
  }}
}}
parameters {{ key: "digest" value {{ string_value: "{digest}" }} }}
parameters {{ key: "checkpoint" value {{ string_value: {checkpoint} }} }}
"""


@click.command("export-triton")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--model",
    metavar="PATH_OR_ID",
    help="Stable Diffusion 1.x or 2.x checkpoint in diffusers' layout.  [default: the bundled miniature]",
)
@click.option("--revision", help="Revision on the hub.")
@click.option("--name", default="denoiser", show_default=True, help="Name of the model on Triton.")
@click.option(
    "--backend",
    type=click.Choice(["python", "onnx"]),
    default="python",
    show_default=True,
    help="Triton's backend for the model: Python (with torch) or ONNX Runtime.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    default="fp32",
    show_default=True,
    help="Precision of the weights and of the tensors in calls.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1, 1024),
    default=32,
    show_default=True,
    help="Largest number of rows in one forward pass; a picture with guidance takes two.",
)
@click.option(
    "--queue-delay",
    type=click.FloatRange(0, 1000),
    default=2.0,
    show_default=True,
    help="Milliseconds that a call waits for others to share its forward pass.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    help="Largest number of waiting calls; further calls are refused. 0: no limit.",
)
def export_triton(
    folder: Path,
    model: str | None,
    revision: str | None,
    name: str,
    backend: str,
    precision: str,
    max_batch: int,
    queue_delay: float,
    max_queue: int,
) -> None:
    """Write a model repository for NVIDIA's Triton Inference Server into DIR.

    It holds the checkpoint's UNet and the code that runs it, with dynamic batching. `tritonserver
    --model-repository=DIR` serves it, and a Generation server with `--denoiser.kind triton` calls it.
    """
    if _NAME.fullmatch(name) is None:
        raise click.BadParameter(f"{name!r} is not a model name; it must match {_NAME.pattern}", param_hint="--name")
    place = folder / name
    if backend == "onnx" and precision == "bf16":
        raise click.BadParameter("ONNX Runtime has no bf16 for most of a UNet; use fp16", param_hint="--precision")
    if place.exists():
        raise click.ClickException(f"{place} exists already: remove it, or give another --name")
    # Slow to import, and only this command needs them. Their log lines are not useful here.
    import diffusers.utils.logging
    import transformers.utils.logging

    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.set_verbosity_error()
    import torch

    from diffusion.loading import load_model
    from diffusion.settings import ModelSettings
    from rpc.settings import SettingsError

    try:
        base = load_model(ModelSettings(source=model, revision=revision, device="cpu"))
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    config = _CONFIG.format(
        name=name,
        backend={"python": "python", "onnx": "onnxruntime"}[backend],
        max_batch=max_batch,
        kind=f"TYPE_{precision.upper()}",
        channels=base.spec.latent_channels,
        dims=base.unet.config.cross_attention_dim,
        delay_us=round(queue_delay * 1000),
        max_queue=max_queue,
        digest=base.spec.digest,
        checkpoint=json.dumps(base.spec.checkpoint),
    )
    folder.mkdir(parents=True, exist_ok=True)
    # The model appears by a rename: a server that polls for new models must not load a part of it.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as work:
        whole = Path(work) / name
        version = whole / "1"
        base.unet.to(dtype)
        if backend == "onnx":
            version.mkdir(parents=True)
            _write_onnx(base, version)
        else:
            base.unet.save_pretrained(version / "unet", safe_serialization=True)
            shutil.copyfile(_MODEL, version / "model.py")
        (whole / "config.pbtxt").write_text(config, "utf-8")
        whole.rename(place)
    click.echo(f"{place}: {base.spec.checkpoint}, {precision}, {max_batch} rows at most, digest {base.spec.digest}")


def _write_onnx(base: "BaseModel", version: Path) -> None:
    from standalone.export_onnx import write_onnx

    try:
        write_onnx(base.unet, version, length=base.spec.encoders[0].length)
    except ModuleNotFoundError as error:  # torch imports its exporter's dependencies on use
        raise click.ClickException(
            f"--backend onnx needs {error.name}: install pseudoword-server[torch,onnx]"
        ) from None
