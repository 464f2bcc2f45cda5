"""Tests for ``reporting/pictures.py``."""

import re

import pytest

from reporting.pictures import PICTURES, mask_updates, memory, method_results
from reporting.stored import load, select
from tests.helpers.pages import ROOT


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_page_shows_the_picture_above_its_table(path):
    assert path.exists()
    pages = (page.read_text("utf-8") for page in ROOT.glob("docs/*.md"))
    shown = rf"\(images/{path.name}\)\s+<!-- begin \w+ -->"
    assert sum(len(re.findall(shown, page)) for page in pages) == 1


def test_every_method_has_its_accuracy():
    figure = method_results()
    found = select(load("benchmarks.methods")["tables"], kind="training")
    assert len(figure.axes) == len(found) == 2
    for axes, entry in zip(figure.axes, found, strict=True):
        dense, *rows = entry["rows"]
        drawn = [bars.lines[0].get_xdata()[0] for bars in axes.containers]
        assert drawn == [100 * row["accuracy_mean"] for row in reversed(rows)]
        assert axes.lines and 100 * dense["accuracy_mean"] in {
            line.get_xdata()[0] for line in axes.lines if len(line.get_xdata())
        }


def test_every_update_has_its_ratio():
    (axes,) = mask_updates().axes
    (bars,) = axes.containers
    found = load("benchmarks.mask_changes")["tables"]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [entry["key"]["method"] for entry in reversed(found)]
    assert len(bars) == len(found)


def test_memory_has_a_line_for_each_optimizer_and_block():
    (found,) = load("benchmarks.memory")["tables"]
    _, *rows = found["rows"]
    lines = {(row["optimizer"], row["block"]) for row in rows}
    for axes, part in zip(memory().axes, ("state", "step"), strict=True):
        *drawn, dense = axes.lines
        assert len(drawn) == len(lines)
        points = {y for line in drawn for y in line.get_ydata()}
        assert points == {row[part] / 2**20 for row in rows}
        assert dense.get_ydata()[0] == found["rows"][0][part] / 2**20
