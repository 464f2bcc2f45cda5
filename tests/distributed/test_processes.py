"""A run of two processes equals the run of one."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.together import Together, environment, free_port

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "distributed" / "two_processes.py"
SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return what each of two processes wrote, then what a single one wrote."""
    folder = tmp_path_factory.mktemp("processes")
    coordinator = f"localhost:{free_port()}"
    outputs = [folder / f"{name}.json" for name in ("first", "second", "alone")]
    numbers = [(2, 0), (2, 1), (1, 0)]
    commands = [
        [
            sys.executable,
            "-W",
            "error",
            PROGRAM,
            output,
            *map(str, process),
            coordinator,
        ]
        for output, process in zip(outputs, numbers, strict=True)
    ]
    devices = [environment(8 // processes) for processes, _ in numbers]
    with Together(commands, devices, folder) as processes:
        processes.finish(timeout=180)
    return [json.loads(output.read_text()) for output in outputs]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["set", "rigl"])
class TestTwoProcesses:
    def test_hold_the_same_masks(self, results, method):
        first, second, _ = results
        assert first[method] == second[method]

    def test_change_them_when_due(self, results, method):
        masks = results[0][method]["masks"]
        changed = [step for step in range(8) if masks[step] != masks[step + 1]]
        assert changed == [1, 3, 5, 7]

    def test_hold_those_of_a_single_process(self, results, method):
        together, _, alone = (found[method] for found in results)
        assert together["masks"] == alone["masks"]
        np.testing.assert_allclose(together["losses"], alone["losses"], rtol=1e-5)
        assert len(set(alone["losses"])) > 4


@pytest.mark.slow
def test_the_code_of_the_document_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", SCALING, re.DOTALL)
    assert len(blocks) >= 2
    (tmp_path / "document_code.py").write_text("\n".join(blocks), encoding="utf-8")
    command = [sys.executable, "-W", "error", tmp_path / "document_code.py"]
    with Together([command], [environment(8)], tmp_path) as processes:
        processes.finish(timeout=120)


def test_the_links_of_the_document_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", SCALING)
    assert links
    for link in links:
        assert (ROOT / "docs" / link).exists(), link
