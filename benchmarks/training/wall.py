"""From the client's first byte to a published version, beside diffusers' own script on the same pictures.

    python -m benchmarks.training.wall --script textual_inversion.py [--steps 3000] [-o FILE.json]

The script is examples/textual_inversion/textual_inversion.py of the diffusers repository, run as its README says (batch
1, four rows accumulated, 5e-4 with --scale_lr, constant) on the bundled model in fp32; it needs torchvision. Ours is
asked over gRPC: pictures uploaded, job created and watched, version read back; the servers are up and have learned one
word before. The same toy for all, that nothing was trained with. Times are of one run on one machine; losses are of
sixteen further drawings. Prints the table of docs/training.md.
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
PUBLISHED = 3_000  # steps that the script's README asks for
_SHOWN = (100, 200, 300, 500, 1000, 2000)
_FINISHED = "learned_embeds.safetensors"


def script(path: Path, case: Case, steps: int, folder: Path) -> dict[int, tuple[float, torch.Tensor]]:
    """What diffusers' script has learned, by steps: seconds since its start, vectors. Raises CalledProcessError."""
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
    said = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    subprocess.run([sys.executable, str(path), *said, "--scale_lr"], check=True, stdout=sys.stderr)
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
    """Seconds since the first byte, and vectors, of each version that was published: with `at_once` two. `steps` None:
    the default."""
    pictures = [png(picture) for picture in case.learn]
    firsts: list[tuple[float, str]] = []
    recipe = None if steps is None else resources_pb2.Recipe(steps=steps)
    began = time.monotonic()

    def heard(event: resources_pb2.JobEvent) -> None:
        if event.job.first_version and not firsts:
            firsts.append((time.monotonic() - began, event.job.first_version))

    version = client.learn(word, pictures, recipe=recipe, at_once=at_once, on_event=heard)
    published = [*firsts, (time.monotonic() - began, version.name)]
    return [(seconds, _vectors(client, name)) for seconds, name in published]


def _vectors(client: Client, version: str) -> torch.Tensor:
    file = client.embedding(version, format=registry_pb2.EMBEDDING_FORMAT_NATIVE)
    (vectors,) = read_tensors(file.data).values()
    return torch.from_numpy(vectors)


def report(found: Mapping[str, Any]) -> None:
    """The table; ratios are to the script's PUBLISHED steps, at its pace where it made fewer, and to its first step
    that is as good."""
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
    parser.add_argument("--steps", type=int, default=PUBLISHED, help="of the script [default: 3000]")
    parser.add_argument("--toy", type=int, default=0, help="which one of the withheld toys [default: 0]")
    parser.add_argument("--times", type=int, default=3, help="ours: the median of so many [default: 3]")
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
