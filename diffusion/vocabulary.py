"""A checkpoint's tokenizer and description, for a server that validates prompts and does not compute."""

import json
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from huggingface_hub import hf_hub_download
from safetensors import safe_open
from transformers import CLIPTextConfig

from diffusion.errors import CheckpointInvalid
from diffusion.spec import Configs, ModelSpec, describe, not_a_checkpoint, place_of, read_index
from diffusion.tokens import PromptTokenizer

_ENCODER = "text_encoder"
_WEIGHTS = "model.safetensors"
_TABLE = "token_embedding.weight"


class Vocabulary:
    """A checkpoint's tokenizer and description. Of the weights, only the text encoder's rows are read, for the
    digest."""

    def __init__(self, spec: ModelSpec, tokenizer: PromptTokenizer) -> None:
        self.spec = spec
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, source: str | None, *, revision: str | None = None) -> Self:
        """Load the vocabulary of a folder or a hub id; None: the bundled miniature. `spec.digest` is empty. Raises
        CheckpointInvalid."""
        place = place_of(source)
        try:
            index = read_index(place, revision)
            at: dict[str, Any] = {"revision": revision}
            tokenizer_class = getattr(transformers, index["tokenizer"][1])
            tokenizer = tokenizer_class.from_pretrained(place, subfolder="tokenizer", **at)
            configs = Configs(
                index=index,
                tokenizer_length=tokenizer.model_max_length,
                text_encoder=CLIPTextConfig.from_pretrained(place, subfolder=_ENCODER, **at).to_dict(),
                unet=dict(UNet2DConditionModel.load_config(place, subfolder="unet", **at)),
                vae=dict(AutoencoderKL.load_config(place, subfolder="vae", **at)),
                scheduler=dict(DDPMScheduler.load_config(place, subfolder="scheduler", **at)),
            )
            table = _table(place, revision)
            if not len(table) / 2 <= len(tokenizer) <= len(table):  # for missing files transformers makes an empty one
                raise CheckpointInvalid(
                    f"the tokenizer of {place} has {len(tokenizer)} entries, and its text encoder {len(table)}",
                    source=place,
                )
            spec = describe(place, configs, table, digest="")
        except CheckpointInvalid:
            raise
        except Exception as error:  # the libraries raise many types for a bad folder, id or file
            raise not_a_checkpoint(place, error) from error
        return cls(spec, PromptTokenizer(tokenizer, spec.encoders[0].length))


def _table(place: str, revision: str | None) -> torch.Tensor:
    """The text encoder's own rows [entries, dims]; no other tensor of their file is read."""
    index = _file(place, f"{_WEIGHTS}.index.json", revision, optional=True)
    name = _WEIGHTS
    if index is not None:
        shards: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
        name = next(shard for key, shard in shards.items() if key.endswith(_TABLE))
    path = _file(place, name, revision)
    assert path is not None
    with safe_open(path, "pt") as opened:
        key = next(key for key in opened.keys() if key.endswith(_TABLE))  # noqa: SIM118, it is not a mapping
        table: torch.Tensor = opened.get_tensor(key)
    return table.float()


def _file(place: str, name: str, revision: str | None, *, optional: bool = False) -> Path | None:
    """A file of the text encoder; None when it is optional and missing."""
    local = Path(place) / _ENCODER / name
    if local.is_file():
        return local
    if Path(place).is_dir():
        if optional:
            return None
        raise FileNotFoundError(f"{local} is missing")
    try:
        return Path(hf_hub_download(place, f"{_ENCODER}/{name}", revision=revision))
    except Exception:
        if optional:
            return None
        raise
