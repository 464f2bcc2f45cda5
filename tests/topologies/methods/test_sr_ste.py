"""SR-STE, worked by hand."""

import numpy as np
import optax

import sparseopt_jax as so
from tests.helpers.forward_training import KEY, PARAMS, array


def test_sr_ste_decays_what_is_not_used():
    # With 1 of 2 weights used: -1 and 2 are not.
    method = so.sr_ste(structure=so.NM(1, 2), decay=0.1)
    params = {"w": array([4, -1], [-3, 2])[..., None]}
    grads = {"w": array([1, 1], [1, 1])[..., None]}
    params, grads = ({"w": tree["w"].reshape(4, 1)} for tree in (params, grads))
    tx = so.sparsify(optax.sgd(1.0), method)
    state = tx.init(params)
    np.testing.assert_array_equal(state.masks["w"][:, 0], [1, 0, 1, 0])
    updates, state = tx.update(grads, state, params)
    np.testing.assert_allclose(updates["w"][:, 0], [-1, -0.9, -1, -1.2], rtol=1e-6)
    # The weights are then 3 -1.9 -4 0.8.
    np.testing.assert_array_equal(state.masks["w"][:, 0], [1, 0, 1, 0])


def test_sr_ste_is_two_of_four_by_itself():
    masks, _ = so.sr_ste().init(KEY, PARAMS)
    groups = np.asarray(masks["k"]).reshape(2, 4, 6)
    np.testing.assert_array_equal(groups.sum(1), 2)
    assert so.sr_ste(0.75).topology.structure == so.Unstructured()
