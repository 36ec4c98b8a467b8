"""The network that says where a word starts, and its file beside the checkpoint.

Encode first, then tune a few steps: the idea of E4T (Gal et al. 2023, arXiv 2302.12228), with one small network for any
thing instead of a large one for a domain.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as write
from torch import nn

from diffusion.errors import CheckpointInvalid
from diffusion.spec import BUNDLED, ModelSpec

FOLDER = "learned_start"
"""Beside a checkpoint's other parts."""
KINDS = ("object", "style")
_FILE = "start.safetensors"
_FORMAT = 1
_WIDTHS = (48, 96, 192, 192)
_GROUPS = 4
_HIDDEN = 384


class StartNetwork(nn.Module):
    """Latents of a concept's pictures to the vector of its word, 0.8 million parameters at a width of 128.

    Each picture is looked at by itself (convolutions, then mean and greatest value over positions); the mean over the
    pictures goes to a head for the kind of concept.
    """

    def __init__(self, channels: int, dims: int, kinds: Sequence[str] = KINDS) -> None:
        """`channels` of a latent; `dims` of the text encoder's embeddings; a head for each of `kinds`."""
        super().__init__()
        self.channels, self.dims, self.kinds = channels, dims, tuple(kinds)
        inputs = (channels, *_WIDTHS[:-1])
        strides = (1, 2, 2, 1)
        self.look = nn.Sequential(
            *(
                layer
                for before, width, stride in zip(inputs, _WIDTHS, strides, strict=True)
                for layer in (nn.Conv2d(before, width, 3, stride, 1), nn.GroupNorm(_GROUPS, width), nn.SiLU())
            )
        )
        self.heads = nn.ModuleDict(
            {
                kind: nn.Sequential(nn.Linear(2 * _WIDTHS[-1], _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, dims))
                for kind in self.kinds
            }
        )

    def forward(self, pictures: Sequence[torch.Tensor], kind: str) -> torch.Tensor:
        """Vectors [concepts, dims] in units of the vocabulary's root mean square; `pictures` has a concept's scaled
        latents [its pictures, channels, h, w] each, all of one size."""
        seen = self.look(torch.cat(list(pictures)))
        pooled = torch.cat([seen.mean(dim=(2, 3)), seen.amax(dim=(2, 3))], dim=1)
        means = [part.mean(dim=0) for part in torch.split(pooled, [len(one) for one in pictures])]
        vectors: torch.Tensor = self.heads[kind](torch.stack(means))
        return vectors


def unit_of(vocabulary: torch.Tensor) -> torch.Tensor:
    """What a network's vectors are multiples of: the root mean square of the vocabulary's values [entries, dims]."""
    return vocabulary.square().mean().sqrt()


def place(source: str | None) -> Path:
    """Where the learned start of a checkpoint lies, or would (a folder; None: the bundled one)."""
    return (BUNDLED if source is None else Path(source).expanduser()) / FOLDER


def beside(source: str | None) -> Path | None:
    """Where the learned start of a checkpoint lies (folder or hub id; None: the bundled one); None: it has none."""
    found = place(source)
    return found if (found / _FILE).is_file() else None


def save(network: StartNetwork, spec: ModelSpec, folder: Path) -> None:
    """Writes the network in fp16, marked with the vocabulary that it was made for."""
    folder.mkdir(parents=True, exist_ok=True)
    made_for = {
        "format": _FORMAT,
        "channels": network.channels,
        "dims": network.dims,
        "kinds": network.kinds,
        "vocabulary": spec.encoders[0].vocabulary_digest,
    }
    weights = {key: value.detach().half().cpu().contiguous() for key, value in network.state_dict().items()}
    beside_it = folder / (_FILE + ".part")
    beside_it.write_bytes(write(weights, metadata={"start": json.dumps(made_for, sort_keys=True)}))
    beside_it.replace(folder / _FILE)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The fp32 weights of a learned start, whatever it was made for. Raises CheckpointInvalid."""
    return _read(folder / _FILE)[1]


def kinds(folder: Path, spec: ModelSpec) -> Sequence[str]:
    """The kinds of concepts that a learned start knows; reads no weights. Raises CheckpointInvalid as `load`."""
    file = folder / _FILE
    with _opened(file) as (made_for, _):
        _check_made_for(file, made_for, spec)
        return tuple(made_for["kinds"])


def load(folder: Path, spec: ModelSpec) -> StartNetwork:
    """What `save` wrote, frozen, on the CPU. Raises CheckpointInvalid where it is none, or was made for another
    vocabulary."""
    file = folder / _FILE
    made_for, found = _read(file)
    _check_made_for(file, made_for, spec)
    network = StartNetwork(made_for["channels"], made_for["dims"], made_for["kinds"])
    try:
        network.load_state_dict(found)
    except RuntimeError as error:
        raise CheckpointInvalid(f"{file} is no learned start: {error}", source=str(file)) from error
    return network.eval().requires_grad_(False)


def _check_made_for(file: Path, made_for: dict[str, Any], spec: ModelSpec) -> None:
    if made_for["vocabulary"] != spec.encoders[0].vocabulary_digest or made_for["channels"] != spec.latent_channels:
        raise CheckpointInvalid(
            f"{file} was made for another base model than {spec.checkpoint}: make it again with"
            " `python -m trainer fit-start`, or take it away",
            source=str(file),
        )


def _read(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What it was made for, and its weights."""
    with _opened(file) as (made_for, opened):
        return made_for, {key: opened.get_tensor(key).float() for key in opened.keys()}  # noqa: SIM118, no mapping


@contextmanager
def _opened(file: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    """What the file was made for, and the open file. Raises CheckpointInvalid."""
    try:
        with safe_open(file, "pt") as opened:
            made_for: dict[str, Any] = json.loads((opened.metadata() or {}).get("start", "{}"))
            if made_for.get("format") != _FORMAT:
                raise CheckpointInvalid(f"{file} is no learned start of this format", source=str(file))
            yield made_for, opened
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointInvalid(f"{file} is no learned start: {error}", source=str(file)) from error
