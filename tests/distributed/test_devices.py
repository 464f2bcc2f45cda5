"""Run the tests that need several devices, which JAX must know before it starts."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [
        *("boxes", "checkpoints", "collectives", "compact_params", "pruning"),
        *("sharding_types", "shardings", "train_steps"),
    ],
)
def test_on_eight_devices(program):
    flags = os.environ.get("XLA_FLAGS", "")
    if program == "collectives":
        # The tests read programs, which are decided before code generation.
        flags += " --xla_backend_optimization_level=0"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            f"tests/distributed/{program}.py",
        ],
        cwd=ROOT,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            # Eight devices that share few cores may reach a collective late.
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=8 "
            "--xla_cpu_collective_call_terminate_timeout_seconds=600",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
