"""Which products run by block once parameters are compact, for a plan."""

from collections.abc import Callable, Sequence
from typing import Any

from sparseopt_jax.compute import crossover
from sparseopt_jax.compute.kernel_products import BlockShape
from sparseopt_jax.compute.model_products import model_products
from sparseopt_jax.layers.leaf_plan import LeafPlan
from sparseopt_jax.masks.block_leaves import is_matrix_of_blocks
from sparseopt_jax.masks.layouts import Layout

# The number of samples assumed without a model: many.
_MANY = 512


def planned_products(
    leaves: Sequence[LeafPlan], params: Any, apply_fn: Callable[[Any], Any] | None
) -> dict[str, str]:
    """Say how products of kernels run that ``compact_params`` would make compact.

    Args:
      leaves: the planned leaves.
      params: any pytree of arrays or ``jax.ShapeDtypeStruct``.
      apply_fn: evaluates the model on its parameters; None if there is no model.

    Returns:
      A few words per path, for every leaf that can be compact.
    """
    layouts = {
        leaf.path: Layout(leaf.units, leaf.per_cell)
        for leaf in leaves
        if leaf.units is not None
        and leaf.per_cell is not None
        and is_matrix_of_blocks(leaf.units)
    }
    if apply_fn is None or not layouts:
        return {path: _described([_unseen(x)]) for path, x in layouts.items()}
    found = model_products(apply_fn, params, layouts)
    return {path: _described(products) for path, products in found.items()}


def _unseen(layout: Layout) -> BlockShape:
    units = layout.units
    inputs, outputs = (units.split[axis] for axis in units.inner)
    return BlockShape((inputs, outputs), (units.per_cell, 1), layout.per_cell, _MANY)


def _described(products: list[BlockShape] | str) -> str:
    if isinstance(products, str):
        return f"refused: {products}"
    if not products:
        return "not used by apply_fn"
    dense = [shape for shape in products if not crossover.pays(shape)]
    if not dense:
        return "by block"
    inputs, outputs = dense[0].block
    block = inputs if inputs == outputs else f"{inputs}x{outputs}"
    part = "" if len(dense) == len(products) else f"{len(dense)} of {len(products)} "
    return (
        f"{part}dense, because block {block} at {dense[0].sparsity:.2g} does not pay "
        "here"
    )
