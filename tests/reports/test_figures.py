"""Figures contain the numbers that they show."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

import sparseopt_jax as so

MASKS = {
    "a": {"k": jnp.arange(4)[:, None] < jnp.array([4, 2, 0]), "b": None},
    "c": jnp.arange(8).reshape(2, 2, 2) > 4,
    "v": jnp.array([True, False]),
}
BEFORE = {"k": jnp.array([[1, 1, 0], [0, 1, 0]], bool)}
AFTER = {"k": jnp.array([[1, 0, 1], [0, 1, 1]], bool)}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "packed"])
def trained(request):
    params = jax.tree.map(
        lambda mask: jnp.ones((3,) if mask is None else mask.shape),
        MASKS,
        is_leaf=lambda x: x is None,
    )
    tx = so.sparsify(optax.sgd(0.1), so.static(masks=MASKS), packed=request.param)
    return params, tx.init(params)


def image_of(figure):
    [image] = figure.axes[0].images
    return np.asarray(image.get_array())


def test_densities_are_widths_from_the_top(trained):
    [axes] = so.plot.densities(*trained).axes
    widths = [bar.get_width() for bar in axes.patches]
    np.testing.assert_allclose(widths, [6 / 12, 3 / 8, 1 / 2])
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["a/k", "c", "v"]
    assert [text.get_text() for text in axes.texts] == ["6 of 12", "3 of 8", "1 of 2"]
    bottom, top = axes.get_ylim()
    assert bottom > top
    assert axes.get_xlabel() == "active weights (%)"


def test_fan_ins_are_counted_by_neuron(trained):
    # Fan-ins 4, 2, 0 and, as a kernel of 4 inputs, 1 and 2.
    first, second = so.plot.fan_ins(*trained).axes
    assert (first.get_title(), second.get_title()) == ("a/k", "c")
    assert [bar.get_height() for bar in first.patches] == [1, 0, 1, 0, 1]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in first.patches]
    np.testing.assert_allclose(centres, range(5))
    assert [bar.get_height() for bar in second.patches] == [1, 1]
    assert [line.get_xdata()[0] for line in (*first.lines, *second.lines)] == [2, 1.5]
    # As two layers of 2 inputs and 2 neurons: fan-ins 0, 0 and 1, 2.
    _, second = so.plot.fan_ins(*trained, dims={"c": so.NeuronDims(1, 2)}).axes
    assert [bar.get_height() for bar in second.patches] == [2, 1, 1]


def test_many_fan_ins_share_bins_of_whole_numbers():
    mask = jnp.arange(200)[:, None] < jnp.arange(1, 101)
    params = {"k": jnp.ones((200, 100))}
    state = so.sparsify(optax.sgd(0.1), so.static(masks={"k": mask})).init(params)
    [axes] = so.plot.fan_ins(params, state).axes
    assert [bar.get_height() for bar in axes.patches] == [4] * 25


def test_fan_ins_need_neurons():
    params = {"v": jnp.ones(2)}
    topology = so.static(masks={"v": MASKS["v"]})
    state = so.sparsify(optax.sgd(0.1), topology).init(params)
    with pytest.raises(ValueError, match="no sparse leaf has neurons"):
        so.plot.fan_ins(params, state)


def test_a_mask_is_inputs_by_neurons(trained):
    _, state = trained
    figure = so.plot.masks(state, "a/k")
    np.testing.assert_array_equal(image_of(figure), MASKS["a"]["k"])
    assert figure.axes[0].get_xlabel() == "neuron"
    assert figure.axes[0].get_ylabel() == "input"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["inactive: 6", "active: 6"]
    mask = np.asarray(MASKS["c"])
    np.testing.assert_array_equal(
        image_of(so.plot.masks(state, "c")), mask.reshape(4, 2)
    )
    # Each of the two reduction axes, the last axis its stack; then a vector.
    dims = so.NeuronDims((0,), (1,))
    for copy in (0, 1):
        shown = image_of(so.plot.masks(state, "c", dims={"c": dims}, copy=copy))
        np.testing.assert_array_equal(shown, mask[:, :, copy])
    np.testing.assert_array_equal(image_of(so.plot.masks(state, "v")), [[1], [0]])


def test_what_has_moved_is_coloured():
    figure = so.plot.masks(AFTER, "k", BEFORE)
    np.testing.assert_array_equal(image_of(figure), [[1, 3, 2], [0, 1, 2]])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["inactive: 1", "active: 2", "grown: 2", "dropped: 1"]
    # The legend agrees with the image.
    [image] = figure.axes[0].images
    colours = [patch.get_facecolor()[:3] for patch in figure.legends[0].get_patches()]
    for code, colour in enumerate(colours):
        np.testing.assert_allclose(image.cmap(image.norm(code))[:3], colour)
    assert len(set(colours)) == 4


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (({"k": jnp.ones((2, 2))}, "k"), "masks must be bool arrays"),
        ((AFTER, "j"), "no mask at 'j'; there are k"),
        ((optax.EmptyState(), "j"), "no mask at 'j'; there are none"),
        ((AFTER, "k", {"k": jnp.ones((3, 2), bool)}), r"was \(3, 2\) before"),
    ],
)
def test_masks_that_cannot_be_shown(arguments, match):
    with pytest.raises(ValueError, match=match):
        so.plot.masks(*arguments)
    with pytest.raises(ValueError, match=r"copy must be in \[0, 1\) at 'k', got 1"):
        so.plot.masks(AFTER, "k", copy=1)


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (2000, 5), (600, 700)])
def test_masks_of_any_shape_can_be_drawn(shape):
    figure = so.plot.masks({"k": jnp.ones(shape, bool)}, "k")
    figure.canvas.draw()
    width, height = figure.get_size_inches()
    assert 2 < width < 8 and 2 < height < 8


def test_the_gif_has_a_picture_for_every_frame(tmp_path):
    still = jax.tree.map(np.asarray, AFTER)
    file = so.plot.animate_masks([BEFORE, AFTER, still], "k", tmp_path / "masks.gif")
    with Image.open(file) as image:
        assert image.format == "GIF" and image.n_frames == 3
        durations, blues = [], []
        for index in range(3):
            image.seek(index)
            durations.append(image.info["duration"])
            pixels = np.asarray(image.convert("RGB"), float) / 255
            blue = np.abs(pixels - to_rgb("#0072B2")).max(-1) < 0.03
            blues.append(int(blue.sum()))
    assert durations == [200, 200, 800]
    # Two cells of six are blue only in the frame after the update; the rest is legend.
    assert blues[0] == blues[2] < blues[1] / 10


def test_frames_and_titles_must_fit(tmp_path):
    with pytest.raises(ValueError, match="frames must hold at least one"):
        so.plot.animate_masks([], "k", tmp_path / "masks.gif")
    with pytest.raises(ValueError, match="titles must be as many as frames, 1"):
        so.plot.animate_masks([AFTER], "k", tmp_path / "masks.gif", titles=[])
    assert not list(tmp_path.iterdir())


def test_exploration_is_a_line():
    steps, explored = [0, 10, 20], jnp.array([0.1, 0.2, 0.25])
    [axes] = so.plot.exploration(steps, explored).axes
    [line] = axes.lines
    np.testing.assert_allclose(line.get_xdata(), steps)
    np.testing.assert_allclose(line.get_ydata(), explored)
    assert [text.get_text() for text in axes.texts] == ["25.0%"]
    assert axes.get_ylim()[0] == 0
    with pytest.raises(ValueError, match="steps and explored must be vectors of one"):
        so.plot.exploration([0, 1], [0.1])


def test_gradient_scale_is_theory_and_points():
    [axes] = so.plot.gradient_scale([0.0, 0.75], [1.1, 2.2]).axes
    theory, measured = axes.lines
    np.testing.assert_allclose(theory.get_ydata()[[0, -1]], [1.0, 2.0])
    np.testing.assert_allclose(measured.get_xdata(), [0.0, 0.75])
    np.testing.assert_allclose(measured.get_ydata(), [1.1, 2.2])
    assert len(so.plot.gradient_scale([0.5]).axes[0].lines) == 1
    for bad in ([0.5, 1.0], [-0.1], []):
        with pytest.raises(ValueError, match=r"sparsities must be in \[0, 1\)"):
            so.plot.gradient_scale(bad)
    with pytest.raises(ValueError, match="vectors of one length"):
        so.plot.gradient_scale([0.5], [1.0, 2.0])


def run(program):
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


@pytest.mark.slow
def test_touches_no_global_state_of_matplotlib():
    run("""
        import sys
        import sparseopt_jax as so
        so.plot.exploration([0, 1], [0.1, 0.2]).canvas.draw()
        assert "matplotlib.pyplot" not in sys.modules
    """)


@pytest.mark.slow
def test_says_what_to_install():
    run("""
        import sys
        sys.modules["matplotlib"] = None
        from sparseopt_jax import *
        import sparseopt_jax as so
        try:
            so.plot
        except ImportError as error:
            assert "pip install 'sparseopt_jax[plot]'" in str(error)
        else:
            raise SystemExit("matplotlib was not missed")
    """)
