"""Leaves that can be kept as active blocks only, according to their structure."""

from typing import Any

import jax
import jax.numpy as jnp

from sparseopt_jax.arrays.units import Units
from sparseopt_jax.masks.layouts import Layout, write_layouts

# Products with smaller blocks are slower than the dense one at any useful sparsity.
MIN_EXTENT = 16


def is_matrix_of_blocks(units: Units) -> bool:
    """Return whether a leaf is a matrix of blocks that a product can visit one by one.

    A block extends over two axes, at least ``MIN_EXTENT`` entries along each. Besides
    stack axes, the leaf has at most one further axis longer than 1: the heads of an
    attention kernel. The kernel of a 3x3 convolution has two and does not qualify.

    Args:
      units: how the leaf's weights are grouped into units.
    """
    extents = [units.split[a] for a in units.inner]
    if len(extents) != 2 or min(extents) < MIN_EXTENT:
        return False
    beside, at = 0, 0
    for axis, size in enumerate(units.shape):
        width = 2 if axis in units.cut else 1
        in_block = at + width - 1 in units.inner
        beside += size > 1 and not in_block and at in units.layer
        at += width
    return beside <= 1


def noted_layouts(topology: Any, params: Any) -> jax.Array | tuple[()]:
    """Return the layouts of the sparse leaves, for ``compact_params``.

    Args:
      topology: decides which leaves are sparse.
      params: any pytree of arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      A uint8 array, as written by ``write_layouts``, with numbers of active units set
      to 0; ``()`` if no leaf is a matrix of blocks, or if weights stay dense.
    """
    if topology.stays_dense:
        return ()
    plans = [plan for plan in topology.leaves(params) if plan.units is not None]
    if not any(is_matrix_of_blocks(plan.units) for plan in plans):
        return ()
    layouts = tuple((plan.path, Layout(plan.units, 0)) for plan in plans)
    return jnp.asarray(write_layouts(layouts))
