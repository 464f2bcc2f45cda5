"""The tutorials as a user starts them, and their output in the docs."""

import re

import pytest

from reporting.pages import tutorials

NAMES = [*tutorials.PAGE]


def words(output):
    """Return the part that does not depend on the processor and the version of JAX."""
    letters = re.sub(r"[\d.,%/x-]+", " ", output)
    return letters.split()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_prints_what_the_docs_show(name):
    stored = (tutorials.OUTPUTS / f"{name}.txt").read_text(encoding="utf-8")
    assert words(tutorials.run(name)) == words(stored)


@pytest.mark.parametrize("name", NAMES)
def test_is_a_page(name):
    assert len(tutorials.script(name).read_text(encoding="utf-8").splitlines()) < 110


def test_resumes_bit_for_bit():
    stored = (tutorials.OUTPUTS / "resume.txt").read_text(encoding="utf-8")
    assert "all arrays are equal bit for bit: True" in stored


def test_what_the_page_says_of_pruning_is_in_its_output():
    stored = (tutorials.OUTPUTS / "prune_trained.txt").read_text(encoding="utf-8")
    found = re.findall(r"^│ (\w[^│]*?) +│(.*)│$", stored, re.MULTILINE)
    accuracies = {
        name: [float(cell) for cell in re.findall(r"([\d.]+)%", cells)]
        for name, cells in found
    }
    magnitude, wanda, sparsegpt, dsnot = (
        accuracies[name]
        for name in ("magnitude", "wanda", "sparsegpt", "wanda, then DSnoT")
    )
    dense = float(re.findall(r"^dense: ([\d.]+)%", stored)[0])
    assert all(dense - 2 < half[0] for half in (magnitude, wanda, sparsegpt))
    assert wanda[1] < magnitude[1] < sparsegpt[1] and dense - 3 < sparsegpt[1]
    assert all(worse < better for worse, better in zip(dsnot, wanda, strict=True))
