"""Every ``so.<name>`` in docs, docstrings and messages exists."""

import ast
import re
from pathlib import Path

import pytest

import sparseopt_jax as so

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = sorted((ROOT / "sparseopt_jax").rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
NAMED = re.compile(
    r"(?<![\w.])so\.((?:linen\.|nnx\.|plot\.|checkpoint\.)?[A-Za-z_]\w*)"
)

# Classes and methods that messages mention without the package.
BARE = re.compile(
    r"\b(?:must be|as|or|use|with|pass|needs|under) (?:a |an |another )?"
    r"([A-Z][A-Za-z]+)\("
)


def is_there(name):
    place = so
    for part in name.split("."):
        if not hasattr(place, part):
            return False
        place = getattr(place, part)
    return True


def strings(path):
    """Return the literal parts of all strings, including docstrings."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("path", [*PACKAGE, *PAGES, *EXAMPLES], ids=lambda p: p.name)
def test_what_is_named_is_there(path):
    pytest.importorskip("matplotlib")  # `so.plot` needs it
    text = path.read_text(encoding="utf-8")
    missing = {name for name in NAMED.findall(text) if not is_there(name)}
    assert not missing


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: p.name)
def test_what_messages_want_can_be_made(path):
    named = {name for text in strings(path) for name in BARE.findall(text)}
    # The requirements of checkpoints are one import further, with Orbax.
    places = (so, so.checkpoint)
    assert not {n for n in named if not any(hasattr(place, n) for place in places)}


@pytest.mark.parametrize("name", ["SparseGPT", "scores", "schedules", "distributions"])
def test_what_methods_are_made_of_is_public(name):
    assert is_there(name)
