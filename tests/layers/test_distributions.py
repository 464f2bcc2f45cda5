"""Budgets worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseopt_jax.layers.distributions import DISTRIBUTIONS, Layer, allocate
from tests.helpers.examples import examples


def dense(path, inputs, outputs, copies=1):
    return Layer(path, (inputs, outputs), copies, inputs, outputs)


def conv(path, height, width, inputs, outputs):
    return Layer(path, (height, width, inputs, outputs), 1, inputs, outputs)


def test_uniform_keeps_the_first_layer_dense():
    layers = [dense("a", 8, 16), dense("b", 16, 32), dense("c", 32, 10)]
    assert allocate("uniform", layers, 0.75) == {"a": 128, "b": 128, "c": 80}


def test_uniform_finds_the_first_layer_by_its_inputs():
    # Tree order is alphabetical: the stem comes last, but no layer feeds its 3 inputs.
    layers = [
        conv("Block_0", 3, 3, 16, 16),
        dense("head", 16, 10),
        conv("stem", 3, 3, 3, 16),
    ]
    counts = allocate("uniform", layers, 0.5)
    assert counts == {"Block_0": 1152, "head": 80, "stem": 432}


def test_uniform_leaves_a_single_layer_sparse():
    assert allocate("uniform", [dense("a", 4, 8)], 0.75) == {"a": 8}


def test_erdos_renyi_kernel_by_hand():
    # a: 100 x 100, b: 10 x 100. Raw densities 200/10000 = 0.02 and 110/1000 = 0.11;
    # raw weights 200 and 110. Budget 0.2 * 11000 = 2200: eps = 2200 / 310 = 7.0968,
    # densities 0.14194 and 0.78065, shares 1419.35 and 780.65.
    layers = [dense("a", 100, 100), dense("b", 10, 100)]
    assert allocate("erdos_renyi_kernel", layers, 0.8) == {"a": 1419, "b": 781}


def test_erdos_renyi_kernel_saturates_and_solves_again():
    # Budget 0.4 * 11000 = 4400: eps = 14.19 gives b the density 1.56, so b is dense and
    # a takes the remaining 3400.
    layers = [dense("a", 100, 100), dense("b", 10, 100)]
    assert allocate("erdos_renyi_kernel", layers, 0.6) == {"a": 3400, "b": 1000}


def test_erdos_renyi_kernel_saturates_in_two_rounds():
    # Sizes 10000, 1000, 200; raw weights 200, 110, 30. Budget 0.3 * 11200 = 3360,
    # eps = 9.882: c (raw 0.15) would be 1.48, b (0.11) 1.087: both dense at once. With
    # budget 0.27 * 11200 = 3024, eps = 8.894: c 1.33, b 0.978; without c the rest has
    # 2824 / 310 = 9.11 and b becomes 1.002: dense in the second round, a takes 1824.
    layers = [dense("a", 100, 100), dense("b", 10, 100), dense("c", 10, 20)]
    assert allocate("erdos_renyi_kernel", layers, 0.7) == {
        "a": 2160,
        "b": 1000,
        "c": 200,
    }
    assert allocate("erdos_renyi_kernel", layers, 0.73) == {
        "a": 1824,
        "b": 1000,
        "c": 200,
    }


def test_kernels_count_in_erdos_renyi_kernel_only():
    # Two convolutions, 3x3x10x10 and 1x1x10x10. With the kernel the raw weights are
    # 3+3+10+10 = 26 and 1+1+10+10 = 22, budget 300: 162.5 and 137.5, capped at 100.
    # Without it both densities are 20/100, so the budget is shared by size: 270 and 30.
    layers = [conv("a", 3, 3, 10, 10), conv("b", 1, 1, 10, 10)]
    assert allocate("erdos_renyi_kernel", layers, 0.7) == {"a": 200, "b": 100}
    assert allocate("erdos_renyi", layers, 0.7) == {"a": 270, "b": 30}


def test_a_stack_is_so_many_layers():
    # Two copies of 10 x 10 and one 10 x 30: raw weights 20 per copy, 40; budget 250.
    layers = [dense("a", 10, 10, copies=2), dense("b", 10, 30)]
    counts = allocate("erdos_renyi_kernel", layers, 0.5)
    assert 2 * counts["a"] + counts["b"] == 250
    assert counts == {"a": 62, "b": 126}


def test_patterns_decide_in_order_and_sparsity_fills_in():
    layers = [
        dense("a/kernel", 4, 5),
        dense("b/kernel", 4, 5),
        dense("head/kernel", 4, 5),
    ]
    counts = allocate({"head/*": 0.0, "a/*": 0.5, "h*": 0.9}, layers, 0.75)
    assert counts == {"a/kernel": 10, "b/kernel": 5, "head/kernel": 20}


def test_a_function_decides():
    layers = [dense("a", 4, 5), dense("b", 4, 5)]
    assert allocate(lambda layers, s: {"a": 3, "b": 20}, layers, 0.5) == {
        "a": 3,
        "b": 20,
    }


@examples()
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=8),
    st.floats(0.0, 0.95),
    st.sampled_from(["erdos_renyi", "erdos_renyi_kernel"]),
)
def test_the_budget_is_met_exactly(shapes, sparsity, name):
    layers = [dense(str(i), a, b) for i, (a, b) in enumerate(shapes)]
    counts = DISTRIBUTIONS[name](layers, sparsity)
    total = sum(layer.size for layer in layers)
    assert sum(counts.values()) == round(total * (1.0 - sparsity))
    assert all(0 <= counts[layer.path] <= layer.size for layer in layers)


@examples()
@given(st.floats(0.3, 0.99))
def test_densities_follow_the_formula_where_nothing_saturates(sparsity):
    layers = [dense("a", 300, 400), dense("b", 500, 200)]
    counts = allocate("erdos_renyi_kernel", layers, sparsity)
    density = {layer.path: counts[layer.path] / layer.size for layer in layers}
    if max(density.values()) < 0.999:
        raw = {"a": 700 / 120_000, "b": 700 / 100_000}
        np.testing.assert_allclose(
            density["a"] / density["b"], raw["a"] / raw["b"], rtol=2e-3
        )


def test_a_layer_without_weights_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"'small' 0 of 4 weights.*keeps at least one"):
        allocate({"small": 0.9}, [dense("small", 2, 2), dense("b", 50, 50)], 0.5)


def test_patterns_that_match_nothing_are_named():
    with pytest.raises(ValueError, match=r"distribution: the pattern 'c\*'.*a, b"):
        allocate({"c*": 0.9}, [dense("a", 2, 2), dense("b", 50, 50)], 0.5)
