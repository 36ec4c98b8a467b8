"""From settings to a loaded base model and its denoiser."""

from collections.abc import Callable

import diffusers.utils.logging
import torch
import transformers.utils.logging

from diffusion.checkpoint import BaseModel, ModelSpec
from diffusion.denoiser import Denoiser, NoDenoiser
from diffusion.errors import CheckpointInvalid
from diffusion.settings import DenoiserSettings, ModelSettings
from rpc.settings import SettingsError


def load_model(
    settings: ModelSettings, denoiser: DenoiserSettings | None = None, *, prompts_only: bool = False
) -> BaseModel:
    """Loads the model that `settings` name; takes seconds to minutes. Raises SettingsError when it is of no use.

    `prompts_only`: for a process that reads prompts and computes nothing; whatever the device, the model lies in memory
    without its UNet.

    With a `denoiser` of kind triton the UNet is not kept, and SettingsError also means that no Triton server answers,
    or that one serves another checkpoint.
    """
    for library in (diffusers.utils.logging, transformers.utils.logging):
        # What the two libraries have to say belongs into the server's log, and bars do not.
        library.disable_progress_bar()
        library.disable_default_handler()
        library.enable_propagation()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = "cpu" if prompts_only else settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    graphs = settings.graphs and not prompts_only
    if graphs and not device.startswith("cuda"):
        raise SettingsError(f"model.graphs needs a CUDA device; this one is {device}")
    dtype: torch.dtype = getattr(torch, settings.dtype)
    try:
        return BaseModel.load(
            settings.source,
            device=device,
            dtype=dtype,
            revision=settings.revision,
            denoiser=(lambda spec: NoDenoiser()) if prompts_only else _remote(denoiser),
            row_buckets=settings.row_buckets,
            graphs=graphs,
        )
    except CheckpointInvalid as error:
        raise SettingsError(error.message) from None


def _remote(settings: DenoiserSettings | None) -> Callable[[ModelSpec], Denoiser] | None:
    if settings is None or settings.kind == "local":
        return None
    try:
        from diffusion.triton import TritonDenoiser  # tritonclient is an extra
    except ModuleNotFoundError as error:
        raise SettingsError(f"denoiser.kind triton needs {error.name}: install pseudoword-server[triton]") from None
    return lambda spec: TritonDenoiser(spec, settings)
