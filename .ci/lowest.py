"""Print the lowest allowed version of every dependency in pyproject.toml, as pins."""

import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"

for requirement in tomllib.loads(PROJECT.read_text())["project"]["dependencies"]:
    name, floor = requirement.split(">=")
    print(f"{name.split('[')[0]}=={floor}")  # pins take no extras
