"""Many clients of three registries over one MinIO under random faults: responses and watches are correct.

A short run of `make robustness`. The seed is in the output; a wrong history is left in out/ with a drawing.
"""

import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, need_program
from tests.robustness.history import OK
from tests.robustness.run import run

pytestmark = pytest.mark.process


async def test_three_replicas_stay_linearizable_under_faults(tmp_path: Path) -> None:
    need_program("minio", "no fault was tried on a registry")
    need_program("toxiproxy", "no fault was tried on a registry")
    seed = time.time_ns() % 2**32
    found = await run(seed, 9, tmp_path, ROOT / "out" / f"robustness-{seed}", longest_s=0.6)
    sys.stdout.write(f"{found}\n")
    assert found.verdict.sound, f"{found}\n{found.verdict}"
    # The run was long enough: operations were done, each kind of watcher was moved, faults happened.
    assert found.history.count(OK) > 100, str(found)
    assert {watched.parent for watched in found.history.watches} >= {"tenants/-", "tenants/shop", "tenants/mara"}
    assert sum(found.faults.values()) >= 5, str(found)
