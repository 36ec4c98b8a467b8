"""Many clients of three registries over one MinIO under random faults: linearizable, and nothing is told wrongly.

A short run; `make robustness MINUTES=10` does the same for longer. The seed is in the output, and a history that is
wrong is left in out/, drawn.
"""

import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, need_program
from tests.robustness.history import OK
from tests.robustness.run import run

pytestmark = pytest.mark.process


async def test_three_replicas_under_faults(tmp_path: Path) -> None:
    need_program("minio", "no fault was tried on a registry")
    need_program("toxiproxy", "no fault was tried on a registry")
    seed = time.time_ns() % 2**32
    found = await run(seed, 9, tmp_path, ROOT / "out" / f"robustness-{seed}", longest_s=0.6)
    sys.stdout.write(f"{found}\n")
    assert found.verdict.sound, f"{found}\n{found.verdict}"
    # It was a trial: things were done, each kind of watcher was moved, faults did happen.
    assert found.history.count(OK) > 100, str(found)
    assert {watched.parent for watched in found.history.watches} >= {"tenants/-", "tenants/shop", "tenants/mara"}
    assert sum(found.faults.values()) >= 5, str(found)
