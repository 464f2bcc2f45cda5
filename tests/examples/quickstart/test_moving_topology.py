"""The program that makes the README's animation."""

import runpy

import pytest
from PIL import Image

from tests.helpers.pages import ROOT

PROGRAM = ROOT / "examples" / "quickstart" / "moving_topology.py"


@pytest.mark.slow
def test_writes_a_picture_for_every_change(tmp_path, capsys):
    file = tmp_path / "new" / "moving.gif"
    runpy.run_path(str(PROGRAM))["main"](file, steps=16, every=3)
    # At random, and after the updates at 0, 3, 6, 9.
    with Image.open(file) as image:
        assert image.n_frames == 5
    assert f"{file}: 5 frames" in capsys.readouterr().out


def test_is_short_and_so_is_what_it_has_written():
    assert len(PROGRAM.read_text(encoding="utf-8").splitlines()) < 80
    file = ROOT / "docs" / "images" / "moving_topology.gif"
    assert file.stat().st_size < 300_000
    with Image.open(file) as image:
        assert image.n_frames > 20
