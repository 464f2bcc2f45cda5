"""Check that the distributions hold the package whole, and nothing else.

python .ci/distributions.py [FOLDER]
"""

import runpy
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "sparseopt_jax"
SUFFIXES = {".py", ".typed"}
# Files of the source distribution besides the package.
BESIDE = {"CHANGELOG.md", "LICENSE", "README.md", "PKG-INFO", "pyproject.toml"}
BESIDE |= {".gitignore"}  # hatchling reads it again when it builds the wheel
METADATA = {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}


def package_files() -> set[str]:
    """Return the paths of the package's files, according to the repository."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / NAME).rglob("*")
        if path.is_file() and path.suffix in SUFFIXES
    }


def contents(path: Path) -> set[str]:
    """Return the paths of the files in a distribution."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return set(wheel.namelist())
    with tarfile.open(path) as archive:
        return {member.name for member in archive if not member.isdir()}


def main(folder: Path) -> None:
    """Compare both distributions in the folder with the repository."""
    version = runpy.run_path(str(ROOT / NAME / "_version.py"))["__version__"]
    release, package = f"{NAME}-{version}", package_files()
    expected = {
        f"{release}-py3-none-any.whl": package
        | {f"{release}.dist-info/{name}" for name in METADATA},
        f"{release}.tar.gz": {f"{release}/{name}" for name in package | BESIDE},
    }
    if not {f"{NAME}/__init__.py", f"{NAME}/py.typed"} <= package:
        sys.exit(f"{NAME} lacks __init__.py or py.typed")
    built = {path.name for path in folder.iterdir()}
    if built != expected.keys():
        sys.exit(f"{folder} holds {sorted(built)}, not {sorted(expected)}")
    for name, files in expected.items():
        found = contents(folder / name)
        if found != files:
            sys.exit(
                f"{name} lacks {sorted(files - found)} "
                f"and should not hold {sorted(found - files)}"
            )
        print(f"{name}: {len(found)} files, {(folder / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist")
