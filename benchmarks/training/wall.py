"""Measures the wall time from the client's first byte to a published version, beside diffusers' script on the same
pictures.

    python -m benchmarks.training.wall --script textual_inversion.py [--steps 3000] [-o FILE.json]

The script is examples/textual_inversion/textual_inversion.py of the diffusers repository, run as in its README (batch
1, four rows accumulated, 5e-4 with --scale_lr, constant) on the bundled model in fp32; it needs torchvision. Our time
is measured over gRPC: the client uploads the pictures, creates and watches the job, and reads the version; the servers
are running and have learned one word before. All learn the same withheld toy. Times are of one run on one machine;
losses are of sixteen held-out drawings. Prints the table of docs/measurements/training.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from pseudoword.client import Client
from pseudoword.registry.v1 import registry_pb2
from pseudoword.trainer.v1 import resources_pb2

from benchmarks.miniature.words import png, toys
from benchmarks.servers import learning
from benchmarks.training.measure import Case, Measure, make_case, say
from diffusion.checkpoint import BaseModel
from diffusion.spec import BUNDLED
from storage.tensors import read_tensors
from trainer.worker.engine import Engine

_SAVED_EVERY = 25
PUBLISHED = 3_000  # steps in the script's README
_SHOWN = (100, 200, 300, 500, 1000, 2000)
_FINISHED = "learned_embeds.safetensors"


def script(path: Path, case: Case, steps: int, folder: Path) -> dict[int, tuple[float, torch.Tensor]]:
    """By steps of diffusers' script: the seconds since its start, and its vectors. Raises CalledProcessError."""
    checkpoint, pictures, learned = folder / "checkpoint", folder / "pictures", folder / "learned"
    StableDiffusionPipeline.from_pretrained(BUNDLED, torch_dtype=torch.float32).save_pretrained(checkpoint)
    pictures.mkdir()
    for number, picture in enumerate(case.learn):
        picture.save(pictures / f"{number}.png")
    options = {
        "pretrained_model_name_or_path": checkpoint,
        "train_data_dir": pictures,
        "learnable_property": "object",
        "placeholder_token": "<toy>",
        "initializer_token": "toy",
        "resolution": 64,
        "train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "max_train_steps": steps,
        "learning_rate": 5e-4,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "save_steps": _SAVED_EVERY,
        "output_dir": learned,
        "report_to": "all",
        "seed": 0,
    }
    began = time.time()
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    subprocess.run([sys.executable, str(path), *arguments, "--scale_lr"], check=True, stdout=sys.stderr)
    names = {step: f"learned_embeds-steps-{step}.safetensors" for step in range(_SAVED_EVERY, steps, _SAVED_EVERY)}
    found = {}
    for step, name in (names | {steps: _FINISHED}).items():
        file = learned / name
        (vectors,) = read_tensors(file.read_bytes()).values()
        found[step] = (file.stat().st_mtime - began, torch.from_numpy(vectors).reshape(1, -1))
    return found


def ours(
    client: Client, word: str, case: Case, steps: int | None, *, at_once: bool
) -> list[tuple[float, torch.Tensor]]:
    """The seconds since the first byte, and the vectors, of each published version: two with `at_once`, otherwise one.
    `steps` None: the default."""
    pictures = [png(picture) for picture in case.learn]
    firsts: list[tuple[float, str]] = []
    recipe = None if steps is None else resources_pb2.Recipe(steps=steps)
    began = time.monotonic()

    def on_event(event: resources_pb2.JobEvent) -> None:
        if event.job.first_version and not firsts:
            firsts.append((time.monotonic() - began, event.job.first_version))

    version = client.learn(word, pictures, recipe=recipe, at_once=at_once, on_event=on_event)
    published = [*firsts, (time.monotonic() - began, version.name)]
    return [(seconds, _vectors(client, name)) for seconds, name in published]


def _vectors(client: Client, version: str) -> torch.Tensor:
    file = client.embedding(version, format=registry_pb2.EMBEDDING_FORMAT_NATIVE)
    (vectors,) = read_tensors(file.data).values()
    return torch.from_numpy(vectors)


def report(found: Mapping[str, Any]) -> None:
    """Prints the table. Ratios are to the time of the script's PUBLISHED steps, extrapolated if it made fewer, and to
    the time of its first step with a loss as low."""
    rows = [(int(step), row["seconds"], row["loss"]) for step, row in found["script"].items()]
    (first, first_s, _), (last, last_s, _) = rows[0], rows[-1]
    pace_s = (last_s - first_s) / (last - first)
    whole = last_s + (PUBLISHED - last) * pace_s
    say(f"the word *toy*: held-out loss {found['start']:.6f}")
    say(f"the script: {pace_s:.4f} s a step, {PUBLISHED:,} steps in {whole:.0f} s\n")
    say(f"| what | s | held-out loss | of the script's {PUBLISHED:,} steps | the script is as good after | of that |")
    say("|---|---|---|---|---|---|")
    for name, row in found["ours"].items():
        equal = next(((step, seconds) for step, seconds, loss in rows if loss <= row["loss"]), None)
        then = f"not in {last:,} steps | -"
        if equal is not None:
            then = f"{equal[0]:,} steps, {equal[1]:.0f} s | 1/{equal[1] / row['seconds']:.0f}"
        say(f"| {name} | {row['seconds']:.2f} | {row['loss']:.6f} | 1/{whole / row['seconds']:.0f} | {then} |")
    for step, seconds, loss in rows:
        if step in _SHOWN or step == last:
            say(f"| diffusers' script, {step:,} steps | {seconds:.1f} | {loss:.6f} | {seconds / whole:.2f} | | |")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.wall",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--script", type=Path, required=True, help="textual_inversion.py of the diffusers repository")
    parser.add_argument("--steps", type=int, default=PUBLISHED, help="steps of the script [default: 3000]")
    parser.add_argument("--toy", type=int, default=0, help="number of the withheld toy [default: 0]")
    parser.add_argument("--times", type=int, default=3, help="number of our runs, for the median [default: 3]")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/training/wall.json"))
    options = parser.parse_args()
    case, other = (make_case(number, toys(number + 1)[number]) for number in (options.toy, options.toy + 1))
    model = BaseModel.load(None)
    measure = Measure(model)
    found: dict[str, Any] = {"ours": {}}
    usual = model.embedding.table.weight[Engine(model).initializers.words.ids("toy")].detach()
    found["start"] = measure.loss(case, usual)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        client = stack.enter_context(Client(learning(stack, folder, model=None, device="cpu")))
        ours(client, "warm", other, 5, at_once=True)
        ways: list[tuple[int | None, bool, Sequence[str]]] = [
            (None, False, ["ours, the default: 50 steps"]),
            (10, True, ["ours, at once: no step", "ours, at once: 10 steps after it"]),
        ]
        for steps, at_once, names in ways:
            rounds = [ours(client, f"toy-{turn}", case, steps, at_once=at_once) for turn in range(options.times)]
            for name, versions in zip(names, zip(*rounds, strict=True), strict=True):
                seconds = [took for took, _ in versions]
                found["ours"][name] = {
                    "seconds": median(seconds),
                    "all_seconds": seconds,
                    "loss": measure.loss(case, versions[0][1]),
                }
                say(f"{name}: {median(seconds):.2f} s")
    with tempfile.TemporaryDirectory() as temporary:
        steps_of = script(options.script, case, options.steps, Path(temporary))
    found["script"] = {
        str(step): {"seconds": seconds, "loss": measure.loss(case, vectors)}
        for step, (seconds, vectors) in steps_of.items()
    }
    options.output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    report(found)


if __name__ == "__main__":
    main()
