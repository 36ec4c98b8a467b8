"""The verdicts of both checkers on a run: porcupine checks each concept's history, the replay checks all responses."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.ledger.log import Backoff, Log, Metadata
from storage.objects.base import ObjectStore
from tests.conftest import ROOT
from tests.robustness.history import History
from tests.robustness.replay import judge, replayed

CHECKER = ROOT / "tests/robustness/checker"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`status`: exit status of porcupine, 0 if the history is linearizable; `porcupine`: its output; `replay`: the
    faults that the replay finds."""

    status: int
    porcupine: str
    replay: Sequence[str]

    @property
    def sound(self) -> bool:
        return self.status == 0 and not self.replay

    def __str__(self) -> str:
        return "\n".join([f"porcupine: status {self.status}", self.porcupine, "replay:", *self.replay[:20]])


def judged(history: History, store: ObjectStore, folder: Path) -> Verdict:
    """Both verdicts; the history, and a drawing of each wrong concept, are left in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "history.json"
    history.save(path)
    status, output = porcupine(path, folder)
    metadata = Metadata.read(store)
    log = Log(store, metadata.store_id, metadata.shards, Backoff())
    return Verdict(status=status, porcupine=output, replay=judge(history, replayed(log)))


def porcupine(path: Path, folder: Path, *arguments: str) -> tuple[int, str]:
    """The exit status of porcupine for the history at `path`, and its output."""
    program = folder / "checker"
    subprocess.run(["go", "build", "-o", program, "."], cwd=CHECKER, check=True, capture_output=True)
    ended = subprocess.run([program, *arguments, path, folder], capture_output=True, text=True, check=False)
    program.unlink()
    return ended.returncode, ended.stdout + ended.stderr
