"""The stages of the training, in order. A stage reads the results of the stages before it, and can be killed at any
time."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from rich.console import Console
from rich.progress import Progress
from transformers import CLIPModel, CLIPTextModel

from diffusion.checkpoint import BaseModel
from miniature.judges.classifier import Classifier
from miniature.judges.clip import new_clip, new_processor
from miniature.training import layout
from miniature.training.diffusion import DiffusionLoss, Mixture, latents_of, trainable
from miniature.training.judging import Batches, ClassifierLoss, ClipLoss
from miniature.training.start import StartLoss
from miniature.training.tokenizer import train_tokenizer
from miniature.training.vae import VaeLoss, settle
from miniature.training.vae import trainable as trainable_vae
from miniature.training.vectors import Vectors
from miniature.training.work import Work
from trainer.learned.fitting import Plan, train
from trainer.training import start_network as learned_start

_LATENTS = "latents.pt"
_CAPTIONED = 6000  # drawings whose captions the tokenizer is trained on


def draw(work: Work) -> None:
    """Paints the drawings."""
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("drawings", total=work.drawings.count)
        for done in work.drawings.paint():
            progress.update(task, completed=done)


def tokenizer(work: Work) -> None:
    """Trains the tokenizer and writes a model with it: an untrained one, or the committed one with its token embeddings
    carried over."""
    folder = work.folder / "tokenizer"
    train_tokenizer(work.sentences(_CAPTIONED), folder / "tokenizer")
    entries = layout.load_tokenizer(folder)
    torch.manual_seed(0)
    if work.committed is None:
        text_encoder = layout.new_text_encoder(entries)
        unet, vae = layout.new_unet(work.latent_channels), layout.new_vae(work.latent_channels)
    else:
        old = work.committed / "model"
        text_encoder = layout.carry_text_encoder(
            CLIPTextModel.from_pretrained(old / "text_encoder", dtype=torch.float32),
            layout.load_tokenizer(old),
            entries,
        )
        unet = UNet2DConditionModel.from_pretrained(old / "unet", torch_dtype=torch.float32)
        vae = AutoencoderKL.from_pretrained(old / "vae", torch_dtype=torch.float32)
    layout.save(work.model, tokenizer=entries, text_encoder=text_encoder, unet=unet, vae=vae)


def vae(work: Work) -> None:
    """Trains the VAE; of a committed VAE the decoder only, because the UNet is trained on its latents."""
    decoder_only = work.committed is not None
    model = AutoencoderKL.from_pretrained(work.model / "vae", torch_dtype=torch.float32)
    model.to(work.device, memory_format=torch.channels_last)
    batches = Batches(work.drawings, 16, work.device, clean=True)
    plan = Plan(
        seed=work.seed, steps=work.steps(700 if decoder_only else 6000), batch=16, rate=2e-4 if decoder_only else 5e-4
    )
    parts = trainable_vae(model, decoder_only=decoder_only)
    train("vae", parts, plan, VaeLoss(model, batches, decoder_only=decoder_only), work.folder / "vae")
    if not decoder_only:
        _, pixels = batches.draw(torch.Generator().manual_seed(0))
        settle(model, pixels)
        (work.folder / _LATENTS).unlink(missing_ok=True)
    model.to(memory_format=torch.contiguous_format).half().save_pretrained(work.model / "vae")


def diffusion(work: Work) -> None:
    """Trains text encoder, UNet, and the networks that map toys and styles to vectors, together."""
    folder = work.folder / "diffusion"
    model = BaseModel.load(str(work.model), device=work.device)
    kept = _committed(work, "vectors")
    vectors = (Vectors() if kept is None else Vectors.load(kept)).to(work.device)
    known = latents(work, model)
    model.unet.to(memory_format=torch.channels_last)
    plan = Plan(
        seed=work.seed,
        steps=work.steps(2000 if work.committed else 8000),
        batch=64,
        rate=5e-4 if work.committed else 8e-4,
    )
    loss = DiffusionLoss(model, vectors, work.drawings, known, Mixture(), plan.batch)
    parts = trainable(model, vectors)
    train("diffusion", parts, plan, loss, folder)
    model.text_encoder.set_input_embeddings(model.embedding.table)
    vectors.save(work.folder / "vectors")
    model.text_encoder.half().save_pretrained(work.model / "text_encoder")
    model.unet.to(memory_format=torch.contiguous_format).half().save_pretrained(work.model / "unet")


def start(work: Work) -> None:
    """Fits the trainer's learned start to the vectors of the networks for toys and styles."""
    model = BaseModel.load(str(work.model), device=work.device)
    folder = work.folder / "start"
    torch.manual_seed(3)
    network = learned_start.StartNetwork(model.spec.latent_channels, model.spec.encoders[0].dims)
    kept = _committed(work, f"model/{learned_start.FOLDER}")
    if kept is not None:
        network.load_state_dict(learned_start.weights(kept))
    network.to(work.device)
    vectors = Vectors.load(work.folder / "vectors").to(work.device).requires_grad_(False)
    plan = Plan(seed=work.seed, steps=work.steps(3000), batch=64, rate=2e-3, warmup=100, averaging=0.998)
    loss = StartLoss(model, network, vectors, work.drawings, latents(work, model), plan.batch)
    train("learned start", network, plan, loss, folder)
    learned_start.save(network, model.spec, work.model / learned_start.FOLDER)


def classifier(work: Work) -> None:
    """Trains the classifier."""
    steps = work.steps(3000 if work.committed else 10_000)
    plan = Plan(seed=work.seed, steps=steps, batch=128, rate=2e-3, warmup=50, averaging=0.99)
    torch.manual_seed(1)
    kept = _committed(work, "classifier")
    judge = (Classifier() if kept is None else Classifier.load(kept).train().requires_grad_(True)).to(work.device)
    train(
        "classifier",
        judge,
        plan,
        ClassifierLoss(judge, Batches(work.drawings, plan.batch, work.device)),
        work.folder / "classifier",
    )
    judge.save(work.folder / "classifier")


def clip(work: Work) -> None:
    """Trains the miniature CLIP, which has its own text encoder."""
    tokenizer = layout.load_tokenizer(work.model)
    # A trained CLIP gets worse at first if its training continues at 1e-3.
    steps, rate = (4000, 4e-4) if work.committed else (15_000, 1e-3)
    plan = Plan(seed=work.seed, steps=work.steps(steps), batch=64, rate=rate, warmup=200, averaging=0.997)
    torch.manual_seed(2)
    kept = _committed(work, "clip")
    judge = (new_clip(tokenizer) if kept is None else CLIPModel.from_pretrained(kept, dtype=torch.float32)).to(
        work.device
    )
    train(
        "clip",
        judge,
        plan,
        ClipLoss(judge, tokenizer, Batches(work.drawings, plan.batch, work.device)),
        work.folder / "clip",
    )
    judge.half().save_pretrained(work.folder / "clip" / "model")
    new_processor(tokenizer).save_pretrained(work.folder / "clip" / "model")


def _committed(work: Work, name: str) -> Path | None:
    """The folder of committed weights to start from; None if there is none."""
    folder = None if work.committed is None else work.committed / name
    return folder if folder is not None and folder.exists() else None


def latents(work: Work, model: BaseModel) -> torch.Tensor:
    """Latents of all drawings; computed once and stored."""
    file = work.folder / _LATENTS
    if not file.exists():
        torch.save(latents_of(model.vae, work.drawings.pixels, work.device), file)
    made: torch.Tensor = torch.load(file, weights_only=True)
    return made


def finish(work: Work) -> None:
    """Copies the results into one folder, with the layout of miniature/."""
    finished = work.folder / "finished"
    for made, name in (("model", "model"), ("clip/model", "clip")):
        shutil.copytree(work.folder / made, finished / name, dirs_exist_ok=True)
    layout.forget_origin(finished / "model")
    Classifier.load(work.folder / "classifier").save(finished / "classifier")
    Vectors.load(work.folder / "vectors").save(finished / "vectors")


STAGES: Mapping[str, Callable[[Work], None]] = {
    "drawings": draw,
    "tokenizer": tokenizer,
    "vae": vae,
    "classifier": classifier,
    "clip": clip,
    "diffusion": diffusion,
    "start": start,
    "finish": finish,
}


def run(work: Work, names: Sequence[str] = ()) -> None:
    """Runs the named stages; without names, all stages that are not finished."""
    for name, stage in STAGES.items():
        finished = work.folder / f"{name}.finished"
        if name not in names if names else finished.exists():
            continue
        finished.unlink(missing_ok=True)
        work.folder.mkdir(parents=True, exist_ok=True)
        stage(work)
        finished.touch()
        (work.folder / name / "checkpoint.pt").unlink(missing_ok=True)
