"""The pictures of docs/concepts.md show what the page says about them."""

import re

import numpy as np
import pytest

from examples.digits import concept_pictures as program
from tests.helpers.pages import ROOT, read


def heights(axes):
    return np.array([bar.get_height() for bar in axes.patches])


def test_the_page_has_those_that_are_drawn():
    shown = re.findall(r"images/concept_(\w+)\.png", read("docs/concepts.md"))
    assert sorted(shown) == sorted(program.PICTURES)
    for name in shown:
        file = ROOT / "docs" / "images" / f"concept_{name}.png"
        assert file.read_bytes().startswith(b"\x89PNG")


def test_factors_are_those_of_the_formula():
    mask, fan_ins, factors = program.neurons().axes
    shown = mask.images[0].get_array()
    np.testing.assert_array_equal(heights(fan_ins), shown.sum(axis=0))
    assert shown.mean() == pytest.approx(0.2, abs=1e-3)
    # sqrt(1 - s_i) / sqrt(1 - s_avg)
    wanted = np.sqrt(shown.mean(axis=0) / shown.mean())
    np.testing.assert_allclose(heights(factors), wanted, rtol=1e-6)


@pytest.mark.slow
def test_rigl_finds_the_inputs_that_say_something():
    first, change, last = (axes.images[0].get_array() for axes in program.change().axes)
    assert np.sum(change == 2) == np.sum(change == 3) > 0  # grown and dropped
    assert np.sum(first > 0) == np.sum(last > 0)
    half = len(first) // 2
    assert np.sum(first[:half] > 0) < 0.6 * np.sum(first > 0)
    assert np.sum(last[:half] > 0) > 0.7 * np.sum(last > 0)


@pytest.mark.slow
def test_batch_normalization_amplifies_and_the_correction_makes_it_flat():
    axes = program.amplification().axes[0]
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}

    def exponent(label):
        density, gradient = np.log(lines[label]).T
        return np.polyfit(density, gradient, 1)[0]

    assert exponent("1 / sqrt(density)") == pytest.approx(-0.5)
    assert exponent("with Batch Normalization") == pytest.approx(-0.5, abs=0.05)
    assert exponent("the same, corrected") == pytest.approx(0.0, abs=0.05)
    assert exponent("without normalisation") == pytest.approx(0.0, abs=0.05)


@pytest.mark.slow
def test_thin_layers_get_more():
    axes = program.densities().axes[0]
    layers = [label.get_text() for label in axes.get_xticklabels()]
    uniform, _, kernel = heights(axes).reshape(3, -1)
    thin = [index for index, layer in enumerate(layers) if "shortcut" in layer]
    assert len(thin) == 2
    assert all(kernel[thin] > 3 * uniform[thin])


@pytest.mark.slow
def test_all_are_written(tmp_path, capsys):
    program.main(tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {
        f"concept_{name}" for name in program.PICTURES
    }
    assert "concept_change.png" in capsys.readouterr().out
