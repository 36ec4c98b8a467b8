"""promtool, from the PATH or from Debian's package."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.rendering import ROOT


@pytest.fixture(scope="session")
def promtool(starts_process: None) -> Path:
    """Prometheus' own checker. If it cannot be installed, tests fail in CI and are skipped elsewhere."""
    found = shutil.which("promtool")
    if found is not None:
        return Path(found)
    done = subprocess.run(
        [ROOT / "scripts" / "apt-tool", "prometheus", "promtool"], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return ROOT / ".cache" / "bin" / "promtool"
    missing = f"NO PROMTOOL: the rules were read, not evaluated. {done.stderr.strip()}"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)
