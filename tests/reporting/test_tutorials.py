"""The tutorials as a user starts them, and what the docs say that they print."""

import re

import pytest

from reporting.pages import tutorials

NAMES = [*tutorials.PAGE]


def words(output):
    """What does not depend on the processor and the version of JAX."""
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


def test_goes_on_to_the_last_bit():
    stored = (tutorials.OUTPUTS / "stop_and_go_on.txt").read_text(encoding="utf-8")
    assert "every array is the same to the last bit: True" in stored
