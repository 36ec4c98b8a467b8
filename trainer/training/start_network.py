"""The learned start: a network that predicts a word's initial vector, and its file beside the checkpoint.

First encode, then tune for a few steps: the idea of E4T (Gal et al. 2023, arXiv 2302.12228), with one small network for
all concepts instead of a large one for each domain.
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
"""Name of the folder beside a checkpoint's other parts."""
KINDS = ("object", "style")
_FILE = "start.safetensors"
_FORMAT = 1
_WIDTHS = (48, 96, 192, 192)
_GROUPS = 4
_HIDDEN = 384


class StartNetwork(nn.Module):
    """Maps the latents of a concept's pictures to a vector of its word; 0.8 million parameters at 128 dimensions.

    Each picture is encoded by itself (convolutions, then mean and maximum over positions); the mean over the pictures
    is the input of a head for the kind of concept.
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
        """Vectors [concepts, dims] in units of the vocabulary's root mean square. `pictures` has the scaled latents
        [its pictures, channels, h, w] of each concept, all of one size."""
        features = self.look(torch.cat(list(pictures)))
        pooled = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)
        means = [part.mean(dim=0) for part in torch.split(pooled, [len(one) for one in pictures])]
        vectors: torch.Tensor = self.heads[kind](torch.stack(means))
        return vectors


def unit_of(vocabulary: torch.Tensor) -> torch.Tensor:
    """The unit of a network's vectors: the root mean square of the vocabulary's values [entries, dims]."""
    return vocabulary.square().mean().sqrt()


def place(source: str | None) -> Path:
    """The folder for the learned start of a checkpoint (a folder; None: the bundled one); it may be absent."""
    return (BUNDLED if source is None else Path(source).expanduser()) / FOLDER


def beside(source: str | None) -> Path | None:
    """The folder of the learned start of a checkpoint (folder or hub id; None: the bundled one), or None if it is
    absent."""
    folder = place(source)
    return folder if (folder / _FILE).is_file() else None


def save(network: StartNetwork, spec: ModelSpec, folder: Path) -> None:
    """Writes the network in fp16, with the digest of the vocabulary that it was fitted for."""
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
    """The fp32 weights of a learned start, for any base model. Raises CheckpointInvalid."""
    return _read(folder / _FILE)[1]


def kinds(folder: Path, spec: ModelSpec) -> Sequence[str]:
    """The kinds of concepts that a learned start supports; reads no weights. Raises CheckpointInvalid as `load`."""
    file = folder / _FILE
    with _opened(file) as (made_for, _):
        _check_made_for(file, made_for, spec)
        return tuple(made_for["kinds"])


def load(folder: Path, spec: ModelSpec) -> StartNetwork:
    """The network that `save` has written, frozen, on the CPU. Raises CheckpointInvalid if the file is not a learned
    start, or was made for another vocabulary."""
    file = folder / _FILE
    made_for, tensors = _read(file)
    _check_made_for(file, made_for, spec)
    network = StartNetwork(made_for["channels"], made_for["dims"], made_for["kinds"])
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointInvalid(f"{file} is not a learned start: {error}", source=str(file)) from error
    return network.eval().requires_grad_(False)


def _check_made_for(file: Path, made_for: dict[str, Any], spec: ModelSpec) -> None:
    if made_for["vocabulary"] != spec.encoders[0].vocabulary_digest or made_for["channels"] != spec.latent_channels:
        raise CheckpointInvalid(
            f"{file} was made for another base model than {spec.checkpoint}: fit it again with"
            " `python -m trainer fit-start`, or remove it",
            source=str(file),
        )


def _read(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The file's metadata, and its weights."""
    with _opened(file) as (made_for, opened):
        return made_for, {key: opened.get_tensor(key).float() for key in opened.keys()}  # noqa: SIM118, no mapping


@contextmanager
def _opened(file: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    """The file's metadata, and the open file. Raises CheckpointInvalid."""
    try:
        with safe_open(file, "pt") as opened:
            made_for: dict[str, Any] = json.loads((opened.metadata() or {}).get("start", "{}"))
            if made_for.get("format") != _FORMAT:
                raise CheckpointInvalid(
                    f"{file} is not a learned start of this format: fit it again with `python -m trainer fit-start`",
                    source=str(file),
                )
            yield made_for, opened
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointInvalid(f"{file} is not a learned start: {error}", source=str(file)) from error
