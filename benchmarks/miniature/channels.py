"""Compares VAEs with different numbers of latent channels, trained from random weights and otherwise equal.

    python -m benchmarks.miniature.channels --work .cache/miniature [--steps 1500] [--channels N ...]

Each is trained on the same drawings in the same order. Then the classifier judges the patterns of held-out photos that
were encoded and decoded, and of the original photos for comparison. A training that was killed continues. Prints a
table and writes docs/miniature/channels.json.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from benchmarks.miniature.drawings import decoded, held_out, pictures, vae_errors
from benchmarks.miniature.scores import answered
from diffusion.spec import BUNDLED
from miniature.judges.attributes import ATTRIBUTES, targets
from miniature.judges.classifier import Classifier
from miniature.training import layout, stages
from miniature.training.judging import Batches
from miniature.training.vae import VaeLoss, trainable
from miniature.training.work import Work, pick_device
from trainer.learned.fitting import Plan, train

_COMMITTED = "the bundled one, of 4"
_PAINTED = "as painted"
_HELD_OUT = 3000


class Photos:
    """Held-out photos with a visible pattern."""

    def __init__(self) -> None:
        drawings, images = held_out(_HELD_OUT)
        shares, seen = targets(drawings, ATTRIBUTES["pattern"])
        self._answers = shares.argmax(axis=1)[seen]
        self._images = [images[place] for place in np.flatnonzero(seen)]
        self._classifier = Classifier.load()

    def patterns(self, vae: AutoencoderKL | None) -> dict[str, float]:
        """The share of photos in which each pattern is recognised, after `vae`, or in the original photos."""
        images = self._images if vae is None else pictures(decoded(vae, self._images))
        right = answered(self._classifier, images)["pattern"] == self._answers
        names = ATTRIBUTES["pattern"].answers
        return {name: float(right[self._answers == place].mean()) for place, name in enumerate(names)}


def run(channels: int, work: Work, folder: Path, steps: int) -> AutoencoderKL:
    """A VAE, trained in `folder` from random weights."""
    torch.manual_seed(0)
    vae = layout.new_vae(channels).to(work.device, memory_format=torch.channels_last)
    plan = Plan(steps=steps, batch=16, rate=5e-4, averaging=0.995)
    loss = VaeLoss(vae, Batches(work.drawings, plan.batch, work.device, clean=True), decoder_only=False)
    train(folder.name, trainable(vae, decoder_only=False), plan, loss, folder)
    return vae.to("cpu").eval()


def table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table with a row for each VAE."""
    names = list(ATTRIBUTES["pattern"].answers)
    lines = [f"| VAE | absolute error | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for what, row in figures.items():
        error = f"{100 * row['absolute']:.2f} %" if "absolute" in row else ""
        lines.append(f"| {what} | {error} | {' | '.join(f'{100 * row[name]:.0f} %' for name in names)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.miniature.channels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="work folder of `python -m miniature train`, for the drawings"
    )
    parser.add_argument("--steps", type=int, default=1500, help="steps of each VAE, of 16 drawings [default: 1500]")
    parser.add_argument("--channels", type=int, nargs="+", default=[4, 8], help="numbers of channels [default: 4 8]")
    parser.add_argument("--threads", type=int, help="number of CPU threads [default: all]")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/miniature/channels.json"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    work = Work(folder=options.work, device=pick_device(None))
    stages.run(work, ("drawings",))
    photos = Photos()
    bundled = AutoencoderKL.from_pretrained(BUNDLED / "vae", torch_dtype=torch.float32).eval()
    figures = {
        _PAINTED: photos.patterns(None),
        _COMMITTED: {"absolute": vae_errors(bundled, 1000)[0].absolute} | photos.patterns(bundled),
    }
    for channels in options.channels:
        vae = run(channels, work, options.work / "channels" / str(channels), options.steps)
        name = f"{channels} channels, {options.steps:,} steps"
        figures[name] = {"absolute": vae_errors(vae, 1000)[0].absolute} | photos.patterns(vae)
        options.output.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
        sys.stdout.write(table(figures) + "\n\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
