"""The learned start: fitted from a folder, used if its loss is lower than a word's, published first on request."""

import json
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import torch
from click.testing import CliRunner
from pseudoword.registry.v1 import registry_pb2
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1.resources_pb2 import Job, Recipe, Start

from diffusion.checkpoint import BaseModel
from diffusion.errors import CheckpointInvalid
from storage.tensors import read_tensors, write_tensors
from tests.trainer.conftest import REX, Running, fields, states
from tests.trainer.conftest import Start as StartTrainer
from trainer.learned.command import fit_start
from trainer.training.start_network import FOLDER, StartNetwork, beside, load, save


@pytest.fixture(scope="module")
def vector(model: BaseModel) -> torch.Tensor:
    """The vector to predict for rex: that of "toy", twice as long."""
    (row,) = model.tokenizer("toy", add_special_tokens=False).input_ids
    return model.embedding.table.weight[row].detach().float() * 2


@pytest.fixture(scope="module")
def fitted(vector: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A learned start that was fitted to one object with a word; it predicts that word for any picture."""
    folder = tmp_path_factory.mktemp("things")
    (folder / "rex").mkdir()
    for number, picture in enumerate(REX):
        (folder / "rex" / f"{number}.png").write_bytes(picture)
    (folder / "rex" / "rex.safetensors").write_bytes(write_tensors({"<rex>": vector[None].numpy()}))
    out = folder / "out"
    output = _fit(
        "--objects", str(folder), "--steps", "150", "--batch", "2", "--work", str(folder / "work"), "-o", str(out)
    )
    assert output == f"objects: 1, with a word: 1\n{out}\n"
    assert (folder / "work" / "loss.png").exists()
    return out


def _fit(*arguments: str) -> str:
    result = CliRunner().invoke(fit_start, [*arguments, "--threads", "1"])
    assert result.exit_code == 0, result.output
    return "\n".join(line for line in result.output.splitlines() if "learned start" not in line) + "\n"


@pytest.mark.compute
def test_network_fitted_to_one_word_predicts_that_word(fitted: Path, model: BaseModel, vector: torch.Tensor) -> None:
    network = load(fitted, model.spec)
    rms = model.embedding.table.weight.float().square().mean().sqrt()
    with torch.no_grad():
        latents = model.vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean
        predicted = network([latents], "object")[0] * rms
    assert torch.nn.functional.cosine_similarity(predicted, vector, dim=0) > 0.9


def test_network_is_fitted_to_pictures_without_words(tmp_path: Path, model: BaseModel) -> None:
    for number, picture in enumerate(REX[:2]):
        (tmp_path / f"{number}.png").write_bytes(picture)
    out = tmp_path / "out"
    _fit("--styles", str(tmp_path), "--steps", "3", "--batch", "2", "--work", str(tmp_path / "work"), "-o", str(out))
    assert load(out, model.spec).kinds == ("style",)
    # A run that ends removes the checkpoint from which a killed run resumes.
    assert not (tmp_path / "work" / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "contain no pictures"),
        ({"a.png": b"no picture"}, "a.png"),
        ({"rex/a.png": REX[0], "rex/a.safetensors": b"no word"}, "is not a word"),
        (
            {"rex/a.png": REX[0], "rex/a.safetensors": write_tensors({"w": torch.ones(1, 5).numpy()})},
            "vectors of 5 dimensions; the model's have 128",
        ),
    ],
)
def test_fit_start_rejects_folders_without_usable_pictures_or_words(
    files: dict[str, bytes], why: str, tmp_path: Path
) -> None:
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    result = CliRunner().invoke(fit_start, ["--objects", str(tmp_path), "-o", str(tmp_path / "out"), "--threads", "1"])
    assert (result.exit_code, why in result.output) == (1, True), result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.compute
def test_invalid_files_and_files_of_another_model_are_rejected(fitted: Path, model: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointInvalid, match="not a learned start"):
        load(tmp_path, model.spec)
    (tmp_path / "start.safetensors").write_bytes(write_tensors({"a": torch.ones(1, 5).numpy()}))
    with pytest.raises(CheckpointInvalid, match="not a learned start of this format"):
        load(tmp_path, model.spec)
    whole = (fitted / "start.safetensors").read_bytes()
    (tmp_path / "start.safetensors").write_bytes(whole[:-1])
    with pytest.raises(CheckpointInvalid, match="not a learned start"):
        load(tmp_path, model.spec)
    digest = model.spec.encoders[0].vocabulary_digest.encode()
    (tmp_path / "start.safetensors").write_bytes(whole.replace(digest, b"0" * 64))
    with pytest.raises(CheckpointInvalid, match=r"another base model.*fit-start"):
        load(tmp_path, model.spec)


def test_network_is_found_beside_its_checkpoint(tmp_path: Path, model: BaseModel) -> None:
    assert beside(str(tmp_path)) is None
    save(StartNetwork(4, 128), model.spec, tmp_path / FOLDER)
    assert beside(str(tmp_path)) == tmp_path / FOLDER
    assert beside("somebody/something") is None


async def _version(words: Any, name: str) -> registry_resources.Version:
    version: registry_resources.Version = await words.GetVersion(registry_pb2.GetVersionRequest(name=name))
    return version


async def _vector(words: Any, name: str) -> torch.Tensor:
    request = registry_pb2.GetEmbeddingRequest(name=name, format=registry_pb2.EMBEDDING_FORMAT_NATIVE)
    (found,) = read_tensors((await words.GetEmbedding(request)).data).values()
    return torch.from_numpy(found)


def _start_of(version: registry_resources.Version) -> dict[str, Any]:
    start: dict[str, Any] = json.loads(version.provenance.recipe_json)["start"]
    return start


async def test_learned_start_is_the_default_for_kinds_that_it_supports(
    start: StartTrainer, words: Any, fitted: Path
) -> None:
    trainer = await start(engine={"learned_start": str(fitted)})
    # With a learning rate near zero the published vectors are the start.
    still = Recipe(steps=1, rows=2, learning_rate=1e-6)
    job = await trainer.create(await trainer.job("started", recipe=still))
    assert job.start == Start(learned=True)
    ended = (await trainer.watch(job.name))[-1].job
    version = await _version(words, ended.version)
    used = _start_of(version)
    assert used["learned"] is True
    assert used["chosen"] in ("learned", "toy")
    # A request that names a start, or a concept of another kind, does not use it.
    assert (await trainer.create(await trainer.job("named", start=Start(words="toy")))).start.words == "toy"
    style = await trainer.job("styled", kind=registry_resources.CONCEPT_KIND_STYLE)
    assert (await trainer.create(style)).start.words == "painting"


async def test_word_is_used_if_the_learned_start_has_a_higher_loss(
    start: StartTrainer, words: Any, model: BaseModel, tmp_path: Path
) -> None:
    network = StartNetwork(4, 128)
    for name, values in network.named_parameters():
        if name.endswith("2.bias") and name.startswith("heads"):
            torch.nn.init.constant_(values, 100.0)  # a hundred times as long as any word
    save(network, model.spec, tmp_path / "wild")
    trainer = await start(engine={"learned_start": str(tmp_path / "wild")})
    recipe = Recipe(steps=1, rows=2, learning_rate=1e-6)
    job = await trainer.create(await trainer.job("tame", recipe=recipe, word_at_once=True))
    ended = (await trainer.watch(job.name))[-1].job
    assert _start_of(await _version(words, ended.version)) == {"learned": True, "chosen": "toy"}
    (row,) = model.tokenizer("toy", add_special_tokens=False).input_ids
    first = await _vector(words, ended.first_version)
    assert torch.equal(first[0], model.embedding.table.weight[row].detach().float())


async def test_word_at_once_publishes_the_start_before_training(start: StartTrainer, words: Any, fitted: Path) -> None:
    trainer = await start(engine={"learned_start": str(fitted)})
    job = await trainer.create(await trainer.job("quick", steps=40, word_at_once=True))
    events = await trainer.watch(job.name)
    seen = [event.job for event in events if event.WhichOneof("event") == "job"]
    early = next(one for one in seen if one.first_version)
    assert early.state == Job.STATE_RUNNING
    ended = seen[-1]
    concept = "tenants/default/concepts/quick/versions"
    assert (ended.first_version, ended.version) == (f"{concept}/1", f"{concept}/2")
    first, refined = [await _version(words, name) for name in (ended.first_version, ended.version)]
    assert (first.provenance.at_once, first.provenance.steps, first.provenance.stop_reason) == (
        True,
        0,
        "learned-start",
    )
    assert (refined.provenance.at_once, refined.provenance.steps, refined.provenance.stop_reason) == (
        False,
        40,
        "steps",
    )
    assert first.provenance.job == refined.provenance.job == job.name
    assert first.tensors_digest != refined.tensors_digest


async def test_start_and_result_are_published_in_order_after_the_registry_was_unavailable(
    start: StartTrainer, words: Any, fitted: Path
) -> None:
    engine = {"learned_start": str(fitted)}
    trainer = await start(engine=engine, registry="127.0.0.1:1", server={"drain_s": 1})
    job = await trainer.create(await trainer.job("belated", word_at_once=True))
    await trainer.reaches(job.name, Job.STATE_PUBLISHING)
    trainer = await start(engine=engine)
    assert states(await trainer.watch(job.name))[-1] == "SUCCEEDED"
    ended = await trainer.get(job.name)
    concept = "tenants/default/concepts/belated/versions"
    assert (ended.first_version, ended.version) == (f"{concept}/1", f"{concept}/2")
    assert (await _version(words, ended.first_version)).provenance.at_once


async def test_jobs_that_cannot_use_the_learned_start_are_rejected(
    start: StartTrainer, fitted: Path, tmp_path: Path
) -> None:
    trainer = await start(engine={"learned_start": str(fitted)})
    await _refused(
        trainer, {"job.start.learned"}, kind=registry_resources.CONCEPT_KIND_STYLE, start=Start(learned=True)
    )
    await _refused(trainer, {"job.start.learned"}, start=Start(learned=False))
    await _refused(trainer, {"job.word_at_once"}, start=Start(words="toy"), word_at_once=True)
    # A checkpoint without a learned start.
    trainer = await start(model={"source": str(tmp_path)})
    assert (await trainer.create(await trainer.job("plain"))).start.words == "toy"
    await _refused(trainer, {"job.start.learned"}, start=Start(learned=True))
    await _refused(trainer, {"job.word_at_once"}, word_at_once=True)


async def _refused(trainer: Running, wrong: set[str], **job: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await trainer.create(await trainer.job("refused", **job))
    assert fields(refused.value) == wrong
