"""Measures the bundled model and its judges, and draws contact sheets.

    python -m benchmarks.miniature [--part NAME ...] [--model FOLDER] [-o docs/miniature]

Prints the tables of docs/miniature.md and writes sheets (PNG) and figures.json, in which parts that are not measured
again stay as they were. The parts: judges (seconds), vae (seconds), prompts (a minute or two), words (some minutes: 30
words are learned by the three servers and drawn in 400 pictures), speed (seconds).
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


class MeasuringBench:
    """What is measured with: the checkpoint's folder and miniature/'s judges."""

    def __init__(self, model: Path, judges: Path, output: Path, client: Callable[[], Client]) -> None:
        self.model = model
        self._clip = judges / "clip"
        self.classifier = Classifier.load(judges / "classifier")
        self.vectors = Vectors.load(judges / "vectors").eval().requires_grad_(False)
        self.client = client
        self._output = output

    @cached_property
    def clip(self) -> Judge:
        """The miniature CLIP. Raises SystemExit where it is not made yet."""
        if not self._clip.exists():
            raise SystemExit(f"there is no {self._clip}: train it with `python -m miniature train clip`")
        return Judge.load(self._clip)

    @property
    def judges(self) -> Mapping[str, PictureJudge]:
        """Those that there are."""
        return {"classifier": self.classifier} | ({"CLIP": self.clip} if self._clip.exists() else {})

    def sheet(self, name: str, rows: Sequence[Sequence[Tile]], title: str) -> None:
        """Writes a contact sheet."""
        contact_sheet(rows, tile_px=_SHEET_TILE_PX, title=title).save(self._output / f"{name}.png", optimize=True)


def judges(bench: MeasuringBench) -> Mapping[str, Any]:
    """Both judges on 2,000 held-out drawings, averaged over answers; and a sheet of such drawings."""
    tiles = drawings.captioned(50)
    bench.sheet("world", [tiles[start : start + 10] for start in range(0, 50, 10)], "drawings and captions")
    return {name: drawings.judge_accuracy(judge, 2000) for name, judge in bench.judges.items()}


def vae(bench: MeasuringBench) -> Mapping[str, Any]:
    """The VAE on held-out photos."""
    model = AutoencoderKL.from_pretrained(bench.model / "vae", torch_dtype=torch.float32).eval()
    errors, rows = drawings.vae_errors(model, 1000)
    bench.sheet("vae", rows, "above: drawn; below: through the VAE")
    return vars(errors)


def sentences(bench: MeasuringBench) -> Mapping[str, Any]:
    """300 sentences, 20 steps, guidance 4."""
    asked = prompts.prompts(300)
    images = prompts.draw(bench.client(), [one.sentence for one in asked])
    tiles = [Tile(image=image, caption=one.sentence) for image, one in zip(images, asked, strict=True)]
    bench.sheet("prompts", [tiles[start : start + 10] for start in range(0, 50, 10)], "20 steps, guidance 4")
    counts = Counter(name for one in asked for name in one.answers)
    seen = {name: prompts.recognised(judge, images, asked) for name, judge in bench.judges.items()}
    return {"asked": dict(counts)} | seen


def learned(bench: MeasuringBench) -> Mapping[str, Any]:
    """20 withheld toys and 10 withheld styles, four pictures each, by the service's default recipe."""
    client = bench.client()
    tools = (client, bench.clip, bench.classifier, bench.vectors)
    toys, rows = words.learn_toys(*tools, words.toys(20))
    bench.sheet("toys", rows, "withheld toys")
    styles, rows = words.learn_styles(*tools, words.styles(10))
    bench.sheet("styles", rows, "withheld styles")
    kept = {name: _mean(one.kept[name] for one in toys) for name in ("plain", *words.EDITS)}
    return {
        "toys": _alike(toys) | {"kept": kept},
        "styles": _alike(styles) | {"kind": _mean(one.kind for one in styles)},
    }


def _alike(scores: Sequence[words.ToyScore] | Sequence[words.StyleScore]) -> dict[str, Any]:
    """CLIP-I, and the share of the way from floor to ceiling, as means."""
    means: dict[str, Any] = {
        name: _mean(getattr(one, name) for one in scores) for name in ("floor", "ceiling", "learned", "oracle")
    }
    return means | {
        "learned share": _mean(one.share(one.learned) for one in scores),
        "oracle share": _mean(one.share(one.oracle) for one in scores),
    }


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def speed(bench: MeasuringBench) -> Mapping[str, Any]:
    """Seconds for one picture of 20 steps with guidance, alone, over gRPC: the median of nine."""
    client = bench.client()
    took = []
    for seed in range(10):
        began = time.perf_counter()
        client.draw("a photo of a toy", seed=seed, steps=prompts.STEPS, guidance_scale=prompts.GUIDANCE)
        took.append(time.perf_counter() - began)
    return {"seconds a picture": float(np.median(took[1:]))}


PARTS: Mapping[str, Callable[[MeasuringBench], Mapping[str, Any]]] = {
    "judges": judges,
    "vae": vae,
    "speed": speed,
    "prompts": sentences,
    "words": learned,
}


def table(figures: Mapping[str, Any]) -> str:
    """Figures as a Markdown table, a row for each leaf's path."""
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
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this one; may be said again")
    parser.add_argument("--model", type=Path, default=_MINIATURE / "model", help="a checkpoint's folder")
    parser.add_argument("--judges", type=Path, default=_MINIATURE, help="folder of clip/, classifier/ and vectors/")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/miniature"), help="[default: docs/miniature]")
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

        bench = MeasuringBench(options.model, options.judges, options.output, client)
        try:
            for name in options.part or PARTS:
                began = time.monotonic()
                figures[name] = PARTS[name](bench)
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
