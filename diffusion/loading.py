"""Loads the base model and its denoiser as the settings say."""

from collections.abc import Callable

import torch

from diffusion.checkpoint import BaseModel
from diffusion.denoiser import Denoiser
from diffusion.errors import CheckpointInvalid
from diffusion.libraries import log_through_ours
from diffusion.settings import DenoiserSettings, ModelSettings
from diffusion.spec import ModelSpec
from diffusion.vocabulary import Vocabulary
from rpc.settings import SettingsError


def load_model(settings: ModelSettings, denoiser: DenoiserSettings | None = None) -> BaseModel:
    """Load the model of `settings`; takes seconds to minutes. Raises SettingsError when the model is unusable.

    With a `denoiser` of kind triton the UNet is not kept, and SettingsError is also raised when no Triton server
    answers, or when one serves another checkpoint.
    """
    log_through_ours()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if settings.graphs and not device.startswith("cuda"):
        raise SettingsError(f"model.graphs needs a CUDA device, and model.device is {device}")
    dtype: torch.dtype = getattr(torch, settings.dtype)
    try:
        return BaseModel.load(
            settings.source,
            device=device,
            dtype=dtype,
            revision=settings.revision,
            denoiser=_remote(denoiser),
            row_buckets=settings.row_buckets,
            graphs=settings.graphs,
        )
    except CheckpointInvalid as error:
        raise SettingsError(error.message) from None


def load_vocabulary(settings: ModelSettings) -> Vocabulary:
    """Load the vocabulary, which is enough for a server that only validates prompts. Raises SettingsError."""
    log_through_ours()
    try:
        return Vocabulary.load(settings.source, revision=settings.revision)
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
