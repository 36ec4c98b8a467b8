"""What both judges say of a run: porcupine of each concept's history, the replayed log of all that was told."""

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
    """`porcupine`: exit status of the checker, 0 where all is linearizable, and what it says; `replay`: what is wrong,
    and nothing where all is well."""

    status: int
    porcupine: str
    replay: Sequence[str]

    @property
    def sound(self) -> bool:
        return self.status == 0 and not self.replay

    def __str__(self) -> str:
        return "\n".join([f"porcupine: status {self.status}", self.porcupine, "replay:", *self.replay[:20]])


def judged(history: History, store: ObjectStore, folder: Path) -> Verdict:
    """Both verdicts; the history, and the drawing of each concept that is wrong, are left in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "history.json"
    history.save(path)
    status, said = porcupine(path, folder)
    metadata = Metadata.read(store)
    log = Log(store, metadata.store_id, metadata.shards, Backoff())
    return Verdict(status=status, porcupine=said, replay=judge(history, replayed(log)))


def porcupine(path: Path, folder: Path, *arguments: str) -> tuple[int, str]:
    """The checker's exit status and what it says of the history at `path`."""
    program = folder / "checker"
    subprocess.run(["go", "build", "-o", program, "."], cwd=CHECKER, check=True, capture_output=True)
    ended = subprocess.run([program, *arguments, path, folder], capture_output=True, text=True, check=False)
    program.unlink()
    return ended.returncode, ended.stdout + ended.stderr
