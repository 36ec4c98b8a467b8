"""Which base model a server loads, where and how."""

import diffusers.utils.logging
import torch
import transformers.utils.logging
from pydantic import BaseModel as Table
from pydantic import Field

from diffusion.checkpoint import BaseModel
from diffusion.errors import CheckpointInvalid
from rpc.settings import SettingsError


class ModelSettings(Table, frozen=True, extra="forbid"):
    """The resident model."""

    source: str | None = Field(
        default=None,
        description="Folder or hub id of a Stable Diffusion 1.x or 2.x checkpoint; absent: the bundled miniature",
    )
    revision: str | None = Field(default=None, description="Revision of a hub id")
    device: str = Field(default="auto", description="cpu, cuda, cuda:1, ...; auto takes cuda where there is one")
    dtype: str = Field(
        default="float32", pattern="^(float32|float16|bfloat16)$", description="Precision of the weights"
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads of the model; absent: all cores")


def load_model(settings: ModelSettings) -> BaseModel:
    """Loads the model that `settings` name; takes seconds to minutes. Raises SettingsError when it is of no use."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        # What the two libraries have to say belongs into the server's log, and bars do not.
        library.disable_progress_bar()
        library.disable_default_handler()
        library.enable_propagation()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype: torch.dtype = getattr(torch, settings.dtype)
    try:
        return BaseModel.load(settings.source, device=device, dtype=dtype, revision=settings.revision)
    except CheckpointInvalid as error:
        raise SettingsError(error.message) from None
