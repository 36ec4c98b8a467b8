"""Measures the bundled model and its judges, and draws contact sheets.

    python -m benchmarks.miniature [--part NAME ...] [--model FOLDER] [-o docs/miniature]

Prints the tables of docs/miniature.md and writes sheets (PNG) and figures.json, which keeps the figures of parts that
are not measured again. The parts: judges (seconds), vae (seconds), prompts (a minute or two), words (some minutes: the
three servers learn 30 words and draw 400 pictures), speed (seconds).
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from pseudoword.client import Client
from pseudoword.sheet import Tile, contact_sheet

from benchmarks.miniature import drawings, prompts, words
from benchmarks.miniature.scores import PictureJudge
from miniature.judges.classifier import Classifier
from miniature.judges.clip import Judge
from miniature.training.vectors import Vectors
from standalone.servers import Servers

_MINIATURE = Path(__file__).parents[2] / "miniature"
_SHEET_TILE_PX = 96


class MeasurementContext:
    """The inputs and outputs of the parts: the checkpoint's folder, the judges, a client, and the folder for sheets."""

    def __init__(self, model: Path, judges: Path, output: Path, client: Callable[[], Client]) -> None:
        self.model = model
        self._clip = judges / "clip"
        self.classifier = Classifier.load(judges / "classifier")
        self.vectors = Vectors.load(judges / "vectors").eval().requires_grad_(False)
        self.client = client
        self._output = output

    @cached_property
    def clip(self) -> Judge:
        """The miniature CLIP. Raises SystemExit if it is not trained."""
        if not self._clip.exists():
            raise SystemExit(f"{self._clip} does not exist: create it with `python -m miniature train clip`")
        return Judge.load(self._clip)

    @property
    def judges(self) -> Mapping[str, PictureJudge]:
        """The available judges."""
        return {"classifier": self.classifier} | ({"CLIP": self.clip} if self._clip.exists() else {})

    def sheet(self, name: str, rows: Sequence[Sequence[Tile]], title: str) -> None:
        """Writes a contact sheet."""
        contact_sheet(rows, tile_px=_SHEET_TILE_PX, title=title).save(self._output / f"{name}.png", optimize=True)


def judges(context: MeasurementContext) -> Mapping[str, Any]:
    """Accuracy of both judges on 2,000 held-out drawings, averaged over answers; a sheet of such drawings."""
    tiles = drawings.captioned(50)
    context.sheet("world", [tiles[start : start + 10] for start in range(0, 50, 10)], "drawings and captions")
    return {name: drawings.judge_accuracy(judge, 2000) for name, judge in context.judges.items()}


def vae(context: MeasurementContext) -> Mapping[str, Any]:
    """Errors of the VAE on held-out photos."""
    model = AutoencoderKL.from_pretrained(context.model / "vae", torch_dtype=torch.float32).eval()
    errors, rows = drawings.vae_errors(model, 1000)
    context.sheet("vae", rows, "above: drawn; below: through the VAE")
    return vars(errors)


def sentences(context: MeasurementContext) -> Mapping[str, Any]:
    """Attributes that the judges recognise in pictures of 300 prompts, with 20 steps and guidance 4."""
    cases = prompts.prompts(300)
    images = prompts.draw(context.client(), [one.sentence for one in cases])
    tiles = [Tile(image=image, caption=one.sentence) for image, one in zip(images, cases, strict=True)]
    context.sheet("prompts", [tiles[start : start + 10] for start in range(0, 50, 10)], "20 steps, guidance 4")
    counts = Counter(name for one in cases for name in one.answers)
    seen = {name: prompts.recognised(judge, images, cases) for name, judge in context.judges.items()}
    return {"asked": dict(counts)} | seen


def learned(context: MeasurementContext) -> Mapping[str, Any]:
    """Scores of words for 20 withheld toys and 10 withheld styles, learned from four pictures each by the default
    recipe."""
    client = context.client()
    tools = (client, context.clip, context.classifier, context.vectors)
    toys, rows = words.learn_toys(*tools, words.toys(20))
    context.sheet("toys", rows, "withheld toys")
    styles, rows = words.learn_styles(*tools, words.styles(10))
    context.sheet("styles", rows, "withheld styles")
    kept = {name: _mean(one.kept[name] for one in toys) for name in ("plain", *words.EDITS)}
    return {
        "toys": _alike(toys) | {"kept": kept},
        "styles": _alike(styles) | {"kind": _mean(one.kind for one in styles)},
    }


def _alike(scores: Sequence[words.ToyScore] | Sequence[words.StyleScore]) -> dict[str, Any]:
    """Means of CLIP-I, and of its position between floor and ceiling."""
    means: dict[str, Any] = {
        name: _mean(getattr(one, name) for one in scores) for name in ("floor", "ceiling", "learned", "oracle")
    }
    return means | {
        "learned share": _mean(one.share(one.learned) for one in scores),
        "oracle share": _mean(one.share(one.oracle) for one in scores),
    }


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def speed(context: MeasurementContext) -> Mapping[str, Any]:
    """Seconds for one picture of 20 steps with guidance over gRPC, without other requests: the median of nine."""
    client = context.client()
    took = []
    for seed in range(10):
        began = time.perf_counter()
        client.draw("a photo of a toy", seed=seed, steps=prompts.STEPS, guidance_scale=prompts.GUIDANCE)
        took.append(time.perf_counter() - began)
    return {"seconds a picture": float(np.median(took[1:]))}


PARTS: Mapping[str, Callable[[MeasurementContext], Mapping[str, Any]]] = {
    "judges": judges,
    "vae": vae,
    "speed": speed,
    "prompts": sentences,
    "words": learned,
}


def table(figures: Mapping[str, Any]) -> str:
    """The figures as a Markdown table with a row for each leaf."""
    lines = ["| what | figure |", "|---|---|"]

    def add(path: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                add(f"{path}, {key}" if path else key, inner)
        else:
            lines.append(f"| {path} | {value if isinstance(value, int) else f'{value:.4f}'} |")

    add("", figures)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.miniature", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", action="append", choices=list(PARTS), help="measures only this part; can be repeated")
    parser.add_argument("--model", type=Path, default=_MINIATURE / "model", help="folder of a checkpoint")
    parser.add_argument("--judges", type=Path, default=_MINIATURE, help="folder with clip/, classifier/ and vectors/")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("docs/miniature"),
        help="folder for sheets and figures.json [default: docs/miniature]",
    )
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "figures.json"
    figures: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    with tempfile.TemporaryDirectory(prefix="pseudoword-miniature-") as data:
        servers: Servers | None = None
        clients: list[Client] = []

        def client() -> Client:
            nonlocal servers
            if servers is None:
                servers = Servers(Path(data), model=str(options.model)).__enter__()
                clients.append(Client(servers.endpoints))
            return clients[0]

        context = MeasurementContext(options.model, options.judges, options.output, client)
        try:
            for name in options.part or PARTS:
                began = time.monotonic()
                figures[name] = PARTS[name](context)
                sys.stderr.write(f"{name}: {time.monotonic() - began:.0f} s\n")
                file.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n", "utf-8")
        finally:
            for one in clients:
                one.close()
            if servers is not None:
                servers.stop()
    sys.stdout.write(table({name: figures[name] for name in PARTS if name in figures}) + "\n")


if __name__ == "__main__":
    main()
