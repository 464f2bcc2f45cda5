"""RigL's options beyond its published form, worked by hand."""

import numpy as np
import optax

import sparseopt_jax as so
from tests.helpers.single_updates import ALWAYS, array, bits, changed


def test_corrected_growth_grows_another_weight():
    # Fan-ins 3 and 1, mean 2: factors sqrt(3/2) = 1.22 and sqrt(1/2) = 0.71. Of the
    # gradients 1.2 and 1 the second is larger once corrected.
    mask = bits([1, 1], [1, 0], [1, 0], [0, 0])
    param = array([5, 4], [3, 0], [1, 0], [0, 0])
    grad = array([0, 0], [0, 1.2], [0, 0], [1, 0])
    options = {"masks": {"w": mask}, **ALWAYS | {"drop_fraction": 0.25}}
    plain, corrected = (
        changed(so.rigl(corrected_growth=is_corrected, **options), mask, param, grad)
        for is_corrected in (False, True)
    )
    np.testing.assert_array_equal(plain, [[1, 1], [1, 1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(corrected, [[1, 1], [1, 0], [0, 0], [1, 0]])


def test_a_least_fan_in_keeps_neurons_alive():
    # The second neuron has the smallest weights; it keeps the largest of them.
    mask = bits([1, 1], [1, 1], [0, 0], [0, 0])
    param = array([9, 1], [8, 2], [0, 0], [0, 0])
    grad = array([0, 0], [0, 0], [5, 0], [4, 0])
    for least, expected in [
        (0, [[1, 0], [1, 0], [1, 0], [1, 0]]),
        (1, [[1, 0], [0, 1], [1, 0], [1, 0]]),
        (2, mask),
    ]:
        topology = so.rigl(masks={"w": mask}, min_fan_in=least, **ALWAYS)
        np.testing.assert_array_equal(changed(topology, mask, param, grad), expected)


def test_a_schedule_of_optax_gives_the_fraction_itself():
    decay = optax.piecewise_constant_schedule(1.5, {5: 0.25 / 1.5})
    mask = bits(1, 1, 1, 1, 0, 0, 0, 0)
    topology = so.rigl(masks={"w": mask}, **ALWAYS | {"decay": decay})
    param, grad = array(4, 3, 2, 1, 0, 0, 0, 0), array(0, 0, 0, 0, 1, 2, 3, 4)
    # More than all means all.
    new = changed(topology, mask, param, grad, count=0)
    np.testing.assert_array_equal(new, bits(0, 0, 0, 0, 1, 1, 1, 1))
    new = changed(topology, mask, param, grad, count=6)
    np.testing.assert_array_equal(new, bits(1, 1, 1, 0, 0, 0, 0, 1))
