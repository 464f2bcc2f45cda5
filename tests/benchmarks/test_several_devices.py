"""The benchmarks that create their own devices, which must happen before JAX starts."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.pages import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "limit"), [("collectives", 0), ("devices", 1.05)], ids=lambda x: str(x)
)
def test_a_quick_run_goes_through(program, limit, tmp_path):
    output = tmp_path / "record.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", f"benchmarks.{program}"),
            *("--quick", "--rounds", "1", "--allow-dirty", "--output", str(output)),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    claims = json.loads(output.read_text())["claims"]
    assert {claim["at_most"] for claim in claims} == {limit}
