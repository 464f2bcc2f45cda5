"""Prints the lowest version of every dependency that pyproject.toml allows, as pins."""

import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"

for requirement in tomllib.loads(PROJECT.read_text())["project"]["dependencies"]:
    name, floor = requirement.split(">=")
    print(f"{name.split('[')[0]}=={floor}")  # pins take no extras
