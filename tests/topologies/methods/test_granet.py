"""GraNet, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

import sparseopt_jax as so
from tests.helpers.falling_densities import PARAMS, SIZES, counts, planned, still
from tests.helpers.ranking import highest


def test_granet_prunes_all_weights_together_and_regrows_each_layer():
    topology = so.granet(0.8, every=2, stop=7, drop_fraction=0.5)
    grads = jax.tree.map(lambda p: jnp.sin(7 * p), PARAMS)
    masks = still(topology, 8, grads=grads)
    assert sum(counts(masks[0]).values()) == 54
    last, weights = planned(topology), {}
    first = counts(masks[0])
    for step in range(8):
        old, new = masks[step], masks[step + 1]
        if step not in (0, 2, 4, 6):
            assert all((old[name] == new[name]).all() for name in SIZES)
            continue
        # Grown weights are zero, and stay zero without a step.
        for name in SIZES:
            weight = weights.get(
                name, np.where(masks[0][name], np.abs(PARAMS[name]), 0)
            )
            weights[name] = np.where(old[name], weight, 0)
        left = (1 - step / 6) ** 3
        total = sum(last[n] + round((first[n] - last[n]) * left) for n in SIZES)
        scores = np.concatenate(
            [np.where(old[n], weights[n], -1).ravel() for n in SIZES]
        )
        pruned = np.split(highest(scores, total), [48])
        fraction = 0.25 * (1 + np.cos(np.pi * step / 7))
        for name, kept in zip(SIZES, pruned, strict=True):
            kept = kept.reshape(old[name].shape)
            dropped = int(fraction * kept.sum())
            stay = highest(np.where(kept, weights[name], -1), kept.sum() - dropped)
            grow = np.where(stay, -1, np.abs(grads[name]))
            expected = stay | highest(grow, dropped)
            np.testing.assert_array_equal(new[name], expected)
            weights[name] = np.where(new[name] & old[name], weights[name], 0)
        assert sum(counts(new).values()) == total
    assert sum(counts(masks[-1]).values()) == sum(last.values())
