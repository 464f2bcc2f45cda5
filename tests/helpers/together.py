"""Several real processes that find each other through a local port."""

import contextlib
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def environment(devices):
    """Return the environment of a process with ``devices`` CPU devices."""
    # Unoptimised programs compile ten times as fast, and compute little here.
    flags = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0",
        # Threads of XLA: with only as many as cores, devices that wait for each other
        # occupy them all, and wait forever.
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
            for command, variables, log in zip(
                commands, environments, self.logs, strict=True
            ):
                with log.open("wb") as file:
                    self.processes.append(
                        subprocess.Popen(
                            command,
                            env=variables,
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
        """Return their output, for a report."""
        return "".join(
            f"\n--- {log.name} ({process.poll()}) ---\n"
            f"{log.read_text(encoding='utf-8', errors='replace')[-6000:]}"
            for process, log in zip(self.processes, self.logs, strict=True)
        )

    def wait_for(self, reached, timeout):
        """Wait until ``reached()``; fail if a process ends first or time runs out."""
        end = time.monotonic() + timeout
        while not reached():
            codes = [process.poll() for process in self.processes]
            if any(codes) or time.monotonic() > end:
                pytest.fail(f"exit codes {codes} (None: running){self.output()}")
            time.sleep(0.05)

    def finish(self, timeout, code=0):
        """Wait until all end; fail if one ends with another code."""
        end = time.monotonic() + timeout
        while True:
            codes = [process.poll() for process in self.processes]
            if all(ended == code for ended in codes):
                return
            # A failed process leaves the others waiting for it.
            failed = any(ended not in (None, code) for ended in codes)
            if failed or time.monotonic() > end:
                pytest.fail(f"exit codes {codes} (None: running){self.output()}")
            time.sleep(0.05)
