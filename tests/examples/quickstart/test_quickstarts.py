"""The quickstarts as a user starts them, unchanged."""

import re
import runpy

import pytest

from tests.helpers.pages import ROOT

EXAMPLES = ROOT / "examples" / "quickstart"
QUICKSTARTS = ["linen.py", "nnx.py"]


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICKSTARTS)
def test_trains_sparse_and_says_so(name, capsys):
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    plan, accuracy, summary = capsys.readouterr().out.split("\n\n")
    assert "2,128 of 21,280 weights active in sparse leaves (10.00%)" in plan
    assert "2,128 of 21,280 weights active in sparse leaves (10.00%)" in summary
    found = re.fullmatch(r"test accuracy: (.*)%", accuracy)
    assert found
    assert float(found[1]) > 90


@pytest.mark.parametrize("name", QUICKSTARTS)
def test_is_short(name):
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 80


def test_do_the_same():
    """Both start from the same data, with the same schedule and the same settings."""
    linen, nnx = ((EXAMPLES / name).read_text(encoding="utf-8") for name in QUICKSTARTS)

    def settings(text):
        return re.findall(
            r"^(EPOCHS.*|    topology = .*|    tx = .*|    schedule = .*)$", text, re.M
        )

    assert len(settings(linen)) == 4
    assert settings(linen) == settings(nnx)
