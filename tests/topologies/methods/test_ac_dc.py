"""Dense and sparse in turn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from tests.helpers.falling_densities import PARAMS, SIZES, counts, kernels, planned


def test_ac_dc_alternates_and_starts_weights_anew():
    topology = so.ac_dc(0.75, compress=[1, 5], decompress=[3])
    tx = so.sparsify(optax.adam(0.01), topology)
    state = tx.init(PARAMS)
    update = jax.jit(tx.update)
    params, history = so.apply_masks(PARAMS, state), []
    for step in range(7):
        grads = jax.tree.map(lambda p, s=step: jnp.cos((3 + s) * p), params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        history.append((params, kernels(so.get_masks(state)), state.inner_state[0]))
    sparse = planned(topology)
    assert [counts(masks) for _, masks, _ in history] == [
        SIZES, sparse, sparse, SIZES, SIZES, sparse, sparse,
    ]  # fmt: skip
    (_, masks, _), (params, _, adam) = history[2:4]
    for name, mask in masks.items():
        for tree in (params, adam.mu, adam.nu):
            np.testing.assert_array_equal(tree[name][~mask], 0)
            assert (np.asarray(tree[name])[mask] != 0).all()
    # Then they are trained.
    assert all((np.asarray(history[4][0][name]) != 0).all() for name in SIZES)


@pytest.mark.parametrize(
    ("compress", "decompress"),
    [([1, 2], []), ([1], [2]), ([2, 3], [1]), ([1, 2], [3]), ([], []), ([1, 1], [1])],
)
def test_phases_that_do_not_alternate_are_refused(compress, decompress):
    with pytest.raises(ValueError, match=r"alternate, .* first and last|must ascend"):
        so.ac_dc(0.5, compress=compress, decompress=decompress)
