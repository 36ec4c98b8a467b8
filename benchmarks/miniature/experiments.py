"""Compares short trainings of the bundled model that differ from its recipe in one setting each.

    python -m benchmarks.miniature.experiments --work .cache/miniature [--steps 250] [--arm NAME ...]

Every arm starts from the committed weights, is trained on the same drawings in the same order, and is measured on
held-out drawings and with 150 prompts. An arm takes some minutes. An arm that was killed continues; a finished arm is
not trained again. Prints a table and writes docs/miniature/experiments.json.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from benchmarks.miniature.prompts import GUIDANCE, prompts, recognised
from diffusion.checkpoint import BaseModel
from miniature.judges.classifier import Classifier
from miniature.training import layout, stages
from miniature.training.diffusion import DiffusionLoss, Mixture, latents_of, trainable
from miniature.training.drawings import HELD_OUT, Drawings
from miniature.training.vectors import Vectors
from miniature.training.work import Work, pick_device
from trainer.learned.fitting import Plan, train

_COMMITTED = Path(__file__).parents[2] / "miniature"
_BATCH, _RATE = 64, 5e-4
# Photos with their share in the training set.
_USUAL = Mixture(with_words=0.45, photos=None)
_HELD_OUT, _HELD_OUT_BATCHES = 2000, 12
_SENTENCES, _STEPS, _AT_ONCE = 150, 10, 30


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One training. `label` describes it in the table."""

    label: str
    mixture: Mixture = _USUAL
    rate: float = _RATE
    fine_attention: bool = False


ARMS: Mapping[str, Arm] = {
    "start": Arm(label="the committed weights, not trained on"),
    "recipe": Arm(label="the recipe of the weights before: drawings as painted, words in 45 % of the captions"),
    "photos": Arm(label="70 % of the drawings are photos", mixture=replace(_USUAL, photos=0.7)),
    "middle": Arm(label="40 % of the timesteps from 300 to 633", mixture=replace(_USUAL, middle=0.4)),
    "attention": Arm(label="attention at 16 x 16 too, beginning with none", fine_attention=True),
    "plain": Arm(label="words in 20 % of the captions", mixture=replace(_USUAL, with_words=0.2)),
    "fast": Arm(label="twice the rate", rate=2 * _RATE),
    "slow": Arm(label="half the rate", rate=_RATE / 2),
    "snr-1": Arm(label="min-SNR 1: noisy steps weigh more", mixture=replace(_USUAL, snr_limit=1.0)),
    "snr-20": Arm(label="min-SNR 20: nearly clean steps weigh more", mixture=replace(_USUAL, snr_limit=20.0)),
    "words": Arm(label="words in 70 % of the captions", mixture=replace(_USUAL, with_words=0.7)),
}


def run(arm: Arm, work: Work, folder: Path, steps: int) -> dict[str, float]:
    """Trains an arm in `folder` and measures it: held-out losses, and the shares of attributes that are recognised in
    pictures of 150 prompts."""
    torch.manual_seed(0)
    model = BaseModel.load(str(_COMMITTED / "model"), device=work.device)
    vectors = Vectors.load(_COMMITTED / "vectors").to(work.device)
    if arm.fine_attention:
        model.unet = layout.carry_unet(model.unet, layout.new_unet(fine_attention=True)).to(work.device)
    model.unet.to(memory_format=torch.channels_last)
    parts = trainable(model, vectors)
    latents = stages.latents(work, model)
    loss = DiffusionLoss(model, vectors, work.drawings, latents, arm.mixture, _BATCH)
    # A short training needs a short average of the weights.
    plan = Plan(steps=steps, batch=_BATCH, rate=arm.rate, warmup=30, averaging=0.98)
    if steps:
        train(folder.name, parts, plan, loss, folder)
    parts.eval().requires_grad_(False)
    held_out = Drawings(work.folder / "drawings", _HELD_OUT, HELD_OUT)
    list(held_out.paint())
    theirs = latents_of(model.vae, held_out.pixels, work.device)
    of_all, of_photos = (
        _mean_loss(DiffusionLoss(model, vectors, held_out, theirs, mixture, _BATCH))
        for mixture in (_USUAL, replace(_USUAL, photos=1.0))
    )
    # The prompts below have no words.
    model.text_encoder.set_input_embeddings(model.embedding.table)
    cases = prompts(_SENTENCES)
    seen = recognised(Classifier.load(), _drawn(model, [one.sentence for one in cases]), cases)
    return {"loss": of_all, "loss of photos": of_photos} | seen


@torch.no_grad()
def _mean_loss(loss: DiffusionLoss) -> float:
    return float(np.mean([loss(torch.Generator().manual_seed(seed)).item() for seed in range(_HELD_OUT_BATCHES)]))


def _drawn(model: BaseModel, sentences: Sequence[str]) -> list[Image.Image]:
    pipeline = StableDiffusionPipeline.from_pretrained(
        _COMMITTED / "model", unet=model.unet, text_encoder=model.text_encoder, vae=model.vae, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for start in range(0, len(sentences), _AT_ONCE):
        some = list(sentences[start : start + _AT_ONCE])
        generators = [torch.Generator().manual_seed(start + place) for place in range(len(some))]
        made = pipeline(some, num_inference_steps=_STEPS, guidance_scale=GUIDANCE, generator=generators)
        images += made.images
    return images


def table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table with a row for each arm."""
    names = list(next(iter(figures.values())))
    lines = ["| arm | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for arm, values in figures.items():
        cells = [f"{values[name]:.5f}" if "loss" in name else f"{100 * values[name]:.1f} %" for name in names]
        lines.append(f"| {ARMS[arm].label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.miniature.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="work folder of `python -m miniature train`, for the drawings"
    )
    parser.add_argument("--steps", type=int, default=250, help="steps of each arm [default: 250]")
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="trains only this arm; can be repeated")
    parser.add_argument("--threads", type=int, help="number of CPU threads [default: all]")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/miniature/experiments.json"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    work = Work(folder=options.work, committed=_COMMITTED, device=pick_device(None))
    stages.run(work, ("drawings",))
    kept: dict[str, dict[str, float]] = {}
    if options.output.exists():
        kept = json.loads(options.output.read_text("utf-8"))
    for name in options.arm or ARMS:
        arm = ARMS[name]
        kept[name] = run(arm, work, options.work / "experiments" / name, 0 if name == "start" else options.steps)
        shown = {arm: kept[arm] for arm in ARMS if arm in kept}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(shown, indent=2) + "\n", "utf-8")
        sys.stdout.write(table(shown) + "\n\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
