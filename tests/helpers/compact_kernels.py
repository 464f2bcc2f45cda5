"""Parameters that store only active blocks, at random places."""

import math

import jax
import jax.numpy as jnp
import numpy as np

import sparseopt_jax as so
from sparseopt_jax.layers.neurons import resolve_axes
from sparseopt_jax.masks.compact_kernel import CompactKernel, is_compact, map_compact
from sparseopt_jax.masks.layouts import Layout
from sparseopt_jax.trees import paths


def compact(kernel, block, active, path="kernel", dims=None):
    """Return a kernel with a given number of active blocks in every layer."""
    axes = resolve_axes(dims, path, kernel)
    units = so.Block(block).units(path, tuple(kernel.shape), axes)
    layout = Layout(units, active)
    random = np.random.default_rng(len(path))
    layers = math.prod(layout.index_shape) // active
    places = [random.permutation(units.per_cell)[:active] for _ in range(layers)]
    places = np.moveaxis(
        np.reshape(places, [n for n in layout.index_shape if n != active] + [active]),
        -1,
        layout.index_shape.index(active),
    )
    index = jnp.asarray(places, jnp.int32)
    return CompactKernel.of(layout.take(jnp.asarray(kernel), index), index, layout)


def compacted(params, blocks, dims=None):
    """Make some kernels of a tree compact.

    Args:
      params: any pytree of arrays.
      blocks: from globs over paths to the blocks' extents and numbers of active blocks.
      dims: as in ``so.static``.
    """

    def at(path, leaf):
        chosen = paths.first_match(path, blocks)
        return leaf if chosen is None else compact(leaf, *chosen, path, dims)

    return paths.map_with_paths(at, params)


def dense(tree):
    """Return the same parameters, all of them dense."""
    return map_compact(lambda kernel: kernel.dense(), tree)


def assert_same_gradients(compact_grads, dense_grads, params, rtol=2e-5, atol=2e-5):
    """Check that gradients of active weights equal those of the dense arrays."""

    def same(kernel, found, expected):
        if is_compact(kernel):
            assert not np.any(found.places)
            found = found.active
            expected = kernel.layout.take(expected, kernel.index)
        assert found.shape == expected.shape and found.dtype == expected.dtype
        np.testing.assert_allclose(
            np.asarray(found, np.float32), np.asarray(expected, np.float32), rtol, atol
        )

    jax.tree.map(same, params, compact_grads, dense_grads, is_leaf=is_compact)
