"""Loading of valid and invalid checkpoints, and the spec of a model."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pseudoword.names import WordRef

from diffusion import decode
from diffusion.checkpoint import BaseModel
from diffusion.compatibility import Match, match
from diffusion.encoder import PromptEncoder
from diffusion.errors import CheckpointInvalid
from diffusion.prompt import parse
from diffusion.spec import BUNDLED
from diffusion.vocabulary import Vocabulary


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The bundled checkpoint, to be changed."""
    return Path(shutil.copytree(BUNDLED, tmp_path / "my-model"))


def test_bundled_model_has_its_documented_shape(model: BaseModel) -> None:
    spec = model.spec
    assert (spec.family, spec.checkpoint) == ("miniature", "miniature")
    assert (spec.sample_size_px, spec.size_multiple_px, spec.vae_scale) == (64, 8, 4)
    assert (spec.encoders[0].dims, spec.encoders[0].length) == (128, 32)
    assert not any(parameter.requires_grad for part in (model.unet, model.vae) for parameter in part.parameters())
    assert sum(file.stat().st_size for file in BUNDLED.rglob("*") if file.is_file()) < 25e6


def test_spec_does_not_depend_on_the_precision(model: BaseModel) -> None:
    half = BaseModel.load(None, dtype=torch.float16)
    assert half.unet.dtype == torch.float16
    assert half.spec == model.spec


def test_checkpoint_without_a_family_is_named_after_its_encoder_and_folder(copy: Path, model: BaseModel) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    del index["_pseudoword_family"]
    (copy / "model_index.json").write_text(json.dumps(index))
    change(copy / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    other = BaseModel.load(str(copy))
    assert (other.spec.family, other.spec.checkpoint) == ("clip-128", "my-model")
    assert other.spec.prediction_type == "v_prediction"
    assert other.spec.digest == model.spec.digest


def test_vocabulary_alone_has_the_spec_and_tokenizer_of_the_checkpoint(copy: Path, model: BaseModel) -> None:
    """A server that only reads prompts needs no UNet and no VAE, and calls the model the same."""
    vocabulary = Vocabulary.load(None)
    assert vocabulary.spec == replace(model.spec, digest="")
    prompt, counts = parse("a photo of <rex> on the beach"), {WordRef(None, "rex"): 2}
    assert vocabulary.tokenizer.tokenize(prompt, counts) == PromptEncoder(model).tokenizer.tokenize(prompt, counts)
    for weights in ("unet", "vae"):
        (copy / weights / "diffusion_pytorch_model.safetensors").unlink()
    assert Vocabulary.load(str(copy)).spec.encoders == model.spec.encoders
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(CheckpointInvalid):
        Vocabulary.load(str(copy))


def test_attention_mask_is_used_if_the_checkpoint_has_one(copy: Path, model: BaseModel) -> None:
    change(copy / "text_encoder/config.json", use_attention_mask=True)
    masked = PromptEncoder(BaseModel.load(str(copy))).encode([parse("a dog")], {})
    plain = PromptEncoder(model).encode([parse("a dog")], {})
    # CLIP's attention is causal, so only positions after the text see the padding.
    assert torch.equal(masked[:, :4], plain[:, :4])
    assert not torch.equal(masked[:, 5:], plain[:, 5:])


@pytest.mark.parametrize("what", ["missing", "no index", "no weights", "pickle only", "other kind"])
def test_invalid_checkpoint_is_an_error_with_its_path(copy: Path, what: str) -> None:
    if what == "missing":
        shutil.rmtree(copy)
    elif what == "no index":
        (copy / "model_index.json").unlink()
    elif what == "no weights":
        (copy / "unet/diffusion_pytorch_model.safetensors").unlink()
    elif what == "pickle only":
        file = copy / "vae/diffusion_pytorch_model.safetensors"
        torch.save({"a": torch.zeros(1)}, file.with_suffix(".bin"))
        file.unlink()
    else:
        change(copy / "scheduler/scheduler_config.json", prediction_type="sample")
    with pytest.raises(CheckpointInvalid) as caught:
        BaseModel.load(str(copy))
    assert str(copy) in caught.value.message


def test_word_matches_a_model_exactly_by_family_or_not(model: BaseModel) -> None:
    encoder = model.spec.encoders[0]
    same = {"family": "miniature", "dims": 128, "vocabulary_digest": encoder.vocabulary_digest}
    for change_of, expected in (
        ({}, Match.EXACT),
        ({"vocabulary_digest": "0" * 64}, Match.FAMILY),
        ({"family": None, "vocabulary_digest": None}, Match.FAMILY),
        ({"dims": 768}, Match.MISMATCH),
        ({"family": "stable-diffusion-1"}, Match.MISMATCH),
    ):
        assert match(model.spec, **(same | change_of)) is expected  # type: ignore[arg-type]


@torch.inference_mode()
def test_preview_shows_the_colours_of_the_picture(model: BaseModel) -> None:
    colours = np.asarray([[(220, 40, 40), (40, 40, 220)], [(40, 200, 60), (240, 230, 120)]], dtype=np.uint8)
    picture = colours.repeat(32, 0).repeat(32, 1)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    latents = model.vae.encode(pixels).latent_dist.mean * model.vae.config.scaling_factor
    small = decode.preview(model, latents)[0]
    assert small.shape == (16, 16, 3)
    for row in range(2):
        for column in range(2):
            seen = small[row * 8 + 4, column * 8 + 4].astype(int)
            assert np.abs(seen - colours[row, column]).max() < 70, (row, column, seen)
    exact = decode.decode(model, latents)[0].astype(int)
    assert np.abs(exact - picture).mean() < 20


def test_only_the_used_word_gets_a_gradient(model: BaseModel, vectors: Mapping[WordRef, torch.Tensor]) -> None:
    leaves = {ref: tensor.clone().requires_grad_(True) for ref, tensor in vectors.items()}
    rex, mia = leaves.values()
    PromptEncoder(model).encode([parse("a photo of <rex>")], leaves).square().sum().backward()  # type: ignore[no-untyped-call]
    assert rex.grad is not None
    assert rex.grad.abs().sum() > 0
    assert mia.grad is None
    assert model.embedding.weight.grad is None
