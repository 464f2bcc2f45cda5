"""Several real processes, which find each other through a port of this machine."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "tests" / "distributed" / "two_processes.py"
SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def environment(devices):
    """For a process with so many CPU devices."""
    # Unoptimised programs compile ten times as fast, and compute little here.
    flags = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0",
        # Threads of XLA: as many as cores, devices that wait for each other take them
        # all, and wait for ever.
        "NPROC": "32",
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }


def free_port():
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return sock.getsockname()[1]


class Together:
    """Processes that end together: none outlives the ``with`` block."""

    def __init__(self, commands, environments, folder):
        self.logs = [folder / f"process_{i}.txt" for i in range(len(commands))]
        self.processes = []
        with contextlib.ExitStack() as stack:
            stack.callback(self.kill)
            for command, own, log in zip(
                commands, environments, self.logs, strict=True
            ):
                with log.open("wb") as file:
                    self.processes.append(
                        subprocess.Popen(
                            command,
                            env=own,
                            stdin=subprocess.DEVNULL,
                            stdout=file,
                            stderr=subprocess.STDOUT,
                        )
                    )
            stack.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def output(self):
        """What they have said, for a report."""
        return "".join(
            f"\n--- {log.name} ({process.poll()}) ---\n"
            f"{log.read_text(encoding='utf-8', errors='replace')[-6000:]}"
            for process, log in zip(self.processes, self.logs, strict=True)
        )

    def wait_for(self, reached, timeout):
        """Until ``reached()``; fails if a process ends before, or time does."""
        end = time.monotonic() + timeout
        while not reached():
            codes = [process.poll() for process in self.processes]
            if any(codes) or time.monotonic() > end:
                pytest.fail(f"exit codes {codes} (None: running){self.output()}")
            time.sleep(0.05)

    def finish(self, timeout, code=0):
        """Waits for their ends; fails if one ends with another code."""
        end = time.monotonic() + timeout
        while True:
            codes = [process.poll() for process in self.processes]
            if all(own == code for own in codes):
                return
            # One that has failed leaves the others waiting for it.
            failed = any(own not in (None, code) for own in codes)
            if failed or time.monotonic() > end:
                pytest.fail(f"exit codes {codes} (None: running){self.output()}")
            time.sleep(0.05)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two processes wrote, then what a single one did."""
    folder = tmp_path_factory.mktemp("processes")
    coordinator = f"localhost:{free_port()}"
    outputs = [folder / f"{name}.json" for name in ("first", "second", "alone")]
    numbers = [(2, 0), (2, 1), (1, 0)]
    commands = [
        [sys.executable, "-W", "error", PROGRAM, output, *map(str, own), coordinator]
        for output, own in zip(outputs, numbers, strict=True)
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
        together, _, alone = (own[method] for own in results)
        assert together["masks"] == alone["masks"]
        np.testing.assert_allclose(together["losses"], alone["losses"], rtol=1e-5)
        assert len(set(alone["losses"])) > 4


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
