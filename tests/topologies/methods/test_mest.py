"""MEST, worked by hand."""

import numpy as np
import pytest

import sparseopt_jax as so
from tests.helpers.single_updates import ALWAYS, array, bits, changed


def test_mest_drops_the_least_of_weight_and_gradient():
    # |w| + 2 |g| of the active: 4, 3 + 2, 2 + 6, 1 + 10. Dropped: the two largest
    # weights.
    mask = bits(1, 1, 1, 1, 0, 0, 0, 0)
    param, grad = array(4, -3, 2, -1, 0, 0, 0, 0), array(0, 1, 3, -5, 0, 9, 0, 0)
    options = {"masks": {"w": mask}, **ALWAYS}
    new = changed(so.mest(gradient_weight=2.0, **options), mask, param, grad)
    np.testing.assert_array_equal(new[2:4], True)
    assert int(new.sum()) == 4
    # Without the gradient it is SET.
    set_, mest = so.set_(**options), so.mest(gradient_weight=0.0, **options)
    np.testing.assert_array_equal(
        changed(mest, mask, param, grad), changed(set_, mask, param, grad)
    )


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_mest_refuses_a_weight_below_zero(weight):
    with pytest.raises(
        ValueError, match=f"gradient_weight .* at least 0, got {weight}"
    ):
        so.mest(0.5, gradient_weight=weight, every=1, stop=2)
