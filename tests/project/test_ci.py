"""The decisions that continuous integration makes itself."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASH = shutil.which("bash") or "/bin/bash"

# Answers like Python to "which version are you, and can you create environments?".
PYTHON = """#!/bin/sh
echo {minor} {executable}
"""
# A shim whose version is not selected.
SHIM = """#!/bin/sh
echo "pyenv: $0: command not found" >&2
exit 127
"""
PYENV = """#!/bin/sh
case "$*" in
  root) echo {root} ;;
  "versions --bare") ls {root}/versions ;;
  *) exit 1 ;;
esac
"""


class Machine:
    """A ``PATH`` with these programs on it, in addition to those that a shell needs."""

    def __init__(self, folder):
        self.bin, self.root = folder / "bin", folder / "pyenv"
        self.bin.mkdir()
        for name in ("ls", "grep", "sort"):
            (self.bin / name).symlink_to(shutil.which(name))

    def add(self, path, text, **values):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(**values))
        path.chmod(0o755)
        return str(path)

    def python(self, minor, path=None, answer=None):
        path = path or self.bin / f"python{minor}"
        return self.add(path, PYTHON, minor=answer or minor, executable=path)

    def shim(self, minor):
        return self.add(self.bin / f"python{minor}", SHIM)

    def behind_shim(self, version, answer=None):
        minor = ".".join(version.split(".")[:2])
        path = self.root / "versions" / version / "bin" / f"python{minor}"
        return self.python(minor, path, answer)

    def pyenv(self):
        self.add(self.bin / "pyenv", PYENV, root=self.root)

    def newest(self, **variables):
        environment = {"PATH": str(self.bin), "HOME": "/nonexistent", **variables}
        return subprocess.run(
            [BASH, ROOT / ".ci" / "newer_python.sh"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout.strip()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_no_newer_python_is_nothing_and_no_error(machine):
    assert machine.newest() == ""
    machine.python("3.11")
    machine.shim("3.13")
    assert machine.newest() == ""


def test_the_newest_python_on_the_path_is_taken(machine):
    machine.python("3.12")
    newest = machine.python("3.13")
    assert machine.newest() == newest


def test_pythons_behind_shims_are_found(machine):
    machine.pyenv()
    for minor in ("3.12", "3.13"):
        machine.shim(minor)
    machine.behind_shim("3.11.7")
    machine.behind_shim("3.12.1")
    assert machine.newest() == machine.behind_shim("3.12.1")
    machine.behind_shim("3.13.9")
    newest = machine.behind_shim("3.13.11")
    assert machine.newest() == newest
    # A Python that is on the path itself counts as well.
    assert machine.newest() == newest
    assert machine.newest() != machine.python("3.12")
    assert machine.python("3.14") == machine.newest()


def test_pythons_behind_shims_are_found_without_pyenv_itself(machine):
    machine.shim("3.13")
    newest = machine.behind_shim("3.13.0")
    assert machine.newest() == ""
    assert machine.newest(PYENV_ROOT=str(machine.root)) == newest


def test_environments_and_other_builds_are_left_alone(machine):
    machine.pyenv()
    for name in ("3.13.0t", "3.14-dev", "pypy3.12-7.3"):
        machine.behind_shim(name, answer="3.13")
    assert machine.newest() == ""


def test_a_python_that_is_another_version_is_passed_over(machine):
    machine.python("3.13", answer="3.11")
    older = machine.python("3.12")
    assert machine.newest() == older


def test_the_newest_jax_goes_untested_nowhere_without_a_word(machine, tmp_path):
    for name in ("dirname", "env"):
        (machine.bin / name).symlink_to(shutil.which(name))
    log = tmp_path / "made"
    machine.add(machine.bin / "bash", f'#!/bin/sh\nexec {BASH} "$@"\n')
    machine.add(machine.bin / "make", '#!/bin/sh\necho "$@" >> {log}\n', log=log)

    def run(**variables):
        log.write_text("")
        done = subprocess.run(
            [BASH, ROOT / ".ci" / "run"],
            env={"PATH": str(machine.bin), "HOME": "/nonexistent", **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        return done, log.read_text().splitlines()

    done, made = run(CI="true")
    assert done.returncode == 1 and not made
    assert "the newest jax" in done.stderr and "python3.12 or newer" in done.stderr
    done, made = run()
    assert done.returncode == 0 and "the newest jax is not tested" in done.stdout
    assert "test" in made and not any("newest" in line for line in made)

    newest = machine.python("3.13")
    for variables in ({}, {"CI": "true"}):
        done, made = run(**variables)
        assert done.returncode == 0, done.stderr
        assert f"The newest jax is tested with {newest}" in done.stdout
        for target in ("test", "test-slow"):
            assert target in made
            assert f"{target} PYTHON={newest} VENV=.venv-newest" in made
        # The last output is a summary of tests.
        assert made[-1].startswith("test")


def test_the_versions_that_are_tested_are_printed():
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "versions.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"({sys.executable}): jax " in done.stdout, done
    makefile = (ROOT / "Makefile").read_text()
    assert makefile.count("python .ci/versions.py") == makefile.count("\t$(call PYTEST")
    assert os.access(ROOT / ".ci" / "newer_python.sh", os.X_OK)
