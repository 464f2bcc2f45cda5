"""What the README says is so."""

import runpy
from pathlib import Path

import sparseopt_jax as so

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_its_tables_are_those_of_the_stored_results():
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    assert tables["render"](README) == README


def test_its_names_exist():
    names = {
        word.split("(")[0].split("`")[0]
        for word in README.replace("\n", " ").split("so.")[1:]
    }
    names = {name.split(" ")[0].split(",")[0].rstrip(".") for name in names}
    for name in names:
        target = so
        for part in name.split("."):
            target = getattr(target, part)


def test_its_links_lead_somewhere():
    for target in ("docs/digits.png", "docs/how_it_works.md"):
        assert f"({target})" in README and (ROOT / target).exists()
    for name in ("quickstart_linen", "quickstart_nnx"):
        assert (ROOT / "examples" / f"{name}.py").exists()
